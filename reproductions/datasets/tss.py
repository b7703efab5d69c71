"""TSS: pairs of photographs of one object category with dense ground-truth flow on the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reproductions import UserError
from reproductions.datasets.annotations import existing
from reproductions.datasets.correspondence import read_columns
from reproductions.storage import content_hash

SUBSETS = ("FG3DCar", "JODS", "PASCAL")


@dataclass(frozen=True)
class FlowPair:
    """Two image files and the flow from the target's pixels into the source.

    Attributes:
        mask: the foreground of the target.
        flip_source: the source image is used mirrored.
    """

    source: Path
    target: Path
    flow: Path
    mask: Path
    flip_source: bool
    subset: str


def load_tss(root: Path) -> tuple[FlowPair, ...]:
    """The pairs that ``root/TSS/test_pairs_tss.csv`` lists, both directions of each.

    Raises:
        UserError: a file that is missing or not as expected.
    """
    table = root / "TSS" / "test_pairs_tss.csv"
    pairs = []
    for line, row in enumerate(read_columns(table, 5), start=2):
        direction, flip = row[2].strip(), row[3].strip()
        if direction not in ("1", "2") or flip not in ("0", "1"):
            raise UserError(
                f"line {line} of {table} has direction {direction!r} and flip {flip!r}: 1|2 and 0|1 expected"
            )
        source, target = (_image(table, line, name) for name in row[:2])
        pairs.append(
            FlowPair(
                source=existing(source, "an image"),
                target=existing(target, "an image"),
                flow=existing(target.with_name(f"flow{direction}.flo"), "a flow"),
                mask=existing(target.with_name(target.name.replace("image", "mask")), "a foreground mask"),
                flip_source=flip == "1",
                subset=target.relative_to(table.parent).parts[0],
            )
        )
    return tuple(pairs)


def content(pairs: Sequence[FlowPair]) -> str:
    """Hash of file names, directions and flows: what the numbers were really measured on."""
    names = [["/".join(path.parts[-3:]) for path in (p.source, p.target)] for p in pairs]  # not the user's own folders
    return content_hash(names, [[p.flip_source, _hash(p.flow)] for p in pairs])


@cache  # a run asks for each again
def _hash(path: Path) -> str:
    return content_hash(path.read_bytes())


def _image(table: Path, line: int, name: str) -> Path:
    parts = Path(name.strip()).parts
    start = next((k for k, part in enumerate(parts) if part in SUBSETS), len(parts))  # drops what precedes the subset
    if len(parts) - start < 3:
        raise UserError(f"line {line} of {table} names {name!r} where <subset>/<pair>/<image> is expected")
    return table.parent.joinpath(*parts[start:])
