"""What a correspondence data set is to the rest: pairs of images with the keypoints both of them show."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from reproductions import UserError
from reproductions.datasets.annotations import existing, read_matlab
from reproductions.datasets.files import decode
from reproductions.storage import content_hash

Convention = Literal["image", "keypoints", "box"]

MARGIN = 1.0
"""How far outside its image, in px, a keypoint may lie.

Coordinates that count from 1, and mirrored ones (W − x), end at W where the last pixel is W − 1; anything further out
is a swapped axis or another image's annotation. The thousand keypoints of PF-WILLOW lie at least 11 px inside.
"""


@dataclass(frozen=True, eq=False)
class KeypointPair:
    """Two image files and the keypoints valid in both.

    Attributes:
        source_keypoints: float64 ``(K, 2)``, x first, in px of the image ``images`` returns.
        threshold: base τ of PCK, in px of the target image.
        flip: both images are used mirrored; the keypoints already are (x ← W − x), the masks are not.
    """

    source: Path
    target: Path
    source_keypoints: np.ndarray
    target_keypoints: np.ndarray
    category: str
    threshold: float
    flip: bool = False
    source_mask: Path | None = None
    target_mask: Path | None = None

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and target, mirrored where the pair is."""
        images = [read_image(path) for path in (self.source, self.target)]
        source, target = [np.ascontiguousarray(i[:, ::-1]) if self.flip else i for i in images]
        return source, target


@dataclass(frozen=True, eq=False)
class KeypointPairs:
    """A split of a correspondence data set.

    Attributes:
        tier: "paper" for the data sets of the papers, which have to be downloaded.
        convention: what τ is: the longer side of the target image, the extent of the target keypoints, or the longer
            side of the annotated target box.
    """

    name: str
    title: str
    split: str
    tier: str
    pairs: tuple[KeypointPair, ...]
    convention: Convention
    licence: str
    source: str

    @cached_property
    def sha256(self) -> str:
        """Hash of file names, categories, keypoints and thresholds: what the numbers were really measured on."""
        parts: list[object] = []
        for p in self.pairs:
            names = ["/".join(path.parts[-2:]) for path in (p.source, p.target)]  # not the user's own folders
            parts += [[*names, p.category, p.threshold, p.flip], p.source_keypoints, p.target_keypoints]
        return content_hash(*parts)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({p.category for p in self.pairs}))


def read_image(path: Path, mode: str = "RGB") -> np.ndarray:
    """Pixels of an image file in a colour mode, uint8: ``(H, W, 3)``, and ``(H, W)`` of "L".

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    return np.array(decode(path, str(path), mode))


@lru_cache(maxsize=8192)
def image_size(path: Path) -> tuple[int, int]:
    """Height and width, from the header alone.

    Raises:
        UserError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"the image {path} is missing") from error
    except OSError as error:
        raise UserError(f"the image {path} cannot be read ({error}): copy it again") from error


def extent(points: np.ndarray) -> float:
    """Longer side of the tight box of points ``(K, 2)``; of a box too, given as its two corners."""
    return float((points.max(0) - points.min(0)).max())


def check_inside(points: np.ndarray, image: Path, annotation: Path) -> None:
    """Refuse keypoints that lie outside their image by more than ``MARGIN``.

    Raises:
        UserError: it names the annotation, the keypoint and the image.
    """
    height, width = image_size(image)
    outside = ((points < -MARGIN) | (points > np.array([width, height]) + MARGIN)).any(1)
    if outside.any():
        k = int(np.flatnonzero(outside)[0])
        x, y = points[k]
        raise UserError(
            f"keypoint {k} of {annotation} at ({x:g}, {y:g}) lies outside its image {image.name} of {width} x {height}"
        )


def read_columns(path: Path, count: int, names: tuple[str, ...] = ()) -> list[list[str]]:
    """The rows under the header of a csv file that has at least so many columns, the first of them of these names.

    Raises:
        UserError: the file is missing, empty, or has other columns.
    """
    rows = list(csv.reader(existing(path, "the list of pairs").read_text().splitlines()))
    if len(rows) < 2:
        raise UserError(f"{path} lists no pairs: a header and a row a pair are expected")
    header = [name.strip() for name in rows[0]]
    if len(header) < count or tuple(header[: len(names)]) != names:
        wanted = f"{count} columns" + (f" that start with {','.join(names)}" if names else "")
        raise UserError(f"{path} has {len(header)} columns ({','.join(header)[:60]}) where {wanted} are expected")
    for k, row in enumerate(rows[1:], start=2):
        if len(row) < count:
            raise UserError(f"line {k} of {path} has {len(row)} columns where {count} are expected")
    return rows[1:]


def read_annotation(path: Path, key: str) -> np.ndarray:
    """One float64 matrix of a MATLAB file.

    Raises:
        UserError: the file is missing or unreadable, or lacks that matrix.
    """
    content = read_matlab(path)
    if key not in content:
        raise UserError(f"the annotation {path} lacks its keypoints: a matrix {key} is expected")
    return np.asarray(content[key], dtype=np.float64)


def mask_file(masks: Path | None, name: str) -> Path | None:
    """The foreground mask of an image, None where no masks are asked for.

    Raises:
        UserError: masks are asked for and this one is missing.
    """
    return None if masks is None else existing(masks / name, "a foreground mask")
