"""Figures inside the page: pictures of the results folder, made smaller, with words for who cannot see them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

WIDEST = 1400  # pixels: two for each of the page's
QUALITY = 82


@dataclass(frozen=True)
class Figure:
    """A picture as the page shows it.

    Attributes:
        source: the picture itself, as an address that needs no file.
        width, height: pixels.
        alt: what is to be seen.
        name: of the file, without its end.
    """

    source: str
    width: int
    height: int
    alt: str
    name: str


def embedded(path: Path, alt: str) -> Figure | None:
    """The picture in a file; None where there is none, or none that can be read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Figure(source, image.width, image.height, alt, path.stem)


def of_table(results: Path, paper: str, table: str) -> Figure | None:
    """The figure of a table, whose numbers stand beside it."""
    words = table.replace("_", " ")
    return embedded(
        results / paper / f"{table}.png", f"{words}: measured values with 95 % intervals, as in the table below"
    )


def gallery(results: Path, paper: str, tables: set[str]) -> list[Figure]:
    """The pictures of a paper that are no table's: transport plans, matches, curves."""
    kinds = {
        "_matches": "matched keypoints drawn as lines between two images",
        "_plan": "a transport plan between the parts of two images",
        "_weights": "where in the image each label has its weight, by method",
        "_matched": "members with the name that each was matched to",
        "_flows": "the flow between the parts of two images, by method",
        "_curves": "curves by method",
        "_gains": "gains by method, with their intervals",
        "_ratios": "histograms of distance ratios, by network",
        "_size": "alignment and accuracy against the number of parameters",
    }
    found = []
    for path in sorted((results / paper).glob("*.png")):
        if path.stem in tables:
            continue
        words = path.stem.replace("_", " ")
        kind = next((text for end, text in kinds.items() if end in path.stem), "a figure")
        if (figure := embedded(path, f"{words}: {kind}")) is not None:
            found.append(figure)
    return found
