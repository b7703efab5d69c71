"""PF-PASCAL: pairs of PASCAL VOC photographs of 20 classes, in the layout that later papers share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split
from reproductions.datasets.correspondence import (
    KeypointPair,
    KeypointPairs,
    check_inside,
    image_size,
    mask_file,
    read_annotation,
    read_columns,
)

SPLITS = ("trn", "val", "test")
LICENCE = "PASCAL VOC images (Flickr terms); annotations for academic use"
SOURCE = "B. Ham, M. Cho, C. Schmid, J. Ponce, Proposal Flow, TPAMI 2018; pairs as split by K. Han et al., 2017"
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def load_pf_pascal(root: Path, split: str = "test", masks: Path | None = None) -> KeypointPairs:
    """A split of ``root/PF-PASCAL``; ``masks`` is a folder of ``<image>.jpg``.

    τ is the longer side of the target image. The training list repeats its pairs mirrored.

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    check_split(split, SPLITS, "PF-PASCAL")
    folder = root / "PF-PASCAL"
    table = folder / f"{split}_pairs.csv"
    names = ("source_image", "target_image", "class", *(("flip",) if split == "trn" else ()))
    pairs = tuple(_pair(folder, table, row, split == "trn", masks) for row in read_columns(table, len(names), names))
    return KeypointPairs(
        name="pf_pascal",
        title="PF-PASCAL",
        split=split,
        tier="paper",
        pairs=pairs,
        convention="image",
        licence=LICENCE,
        source=SOURCE,
    )


def _pair(folder: Path, table: Path, row: list[str], flips: bool, masks: Path | None) -> KeypointPair:
    if not row[2].strip().isdecimal() or not 1 <= int(row[2]) <= len(CLASSES):
        raise UserError(f"{table} has the class {row[2]!r} where a number from 1 to {len(CLASSES)} is expected")
    if flips and row[3].strip() not in ("0", "1"):
        raise UserError(f"{table} has the flip {row[3]!r} where 0 or 1 is expected")
    category, flip = CLASSES[int(row[2]) - 1], flips and row[3].strip() == "1"
    source, target = (folder / "JPEGImages" / Path(name.strip()).name for name in row[:2])
    annotations = [folder / "Annotations" / category / f"{image.stem}.mat" for image in (source, target)]
    first, second = (_keypoints(path) for path in annotations)
    if len(first) != len(second):
        raise UserError(f"{annotations[0]} has {len(first)} keypoints, but {annotations[1]} has {len(second)}")
    both = np.isfinite(np.concatenate([first, second], axis=1)).all(1)
    if not both.any():
        raise UserError(f"{annotations[0]} and {annotations[1]} share no keypoint")
    return KeypointPair(
        source=source,
        target=target,
        source_keypoints=_placed(first[both], source, annotations[0], flip),
        target_keypoints=_placed(second[both], target, annotations[1], flip),
        category=category,
        threshold=float(max(image_size(target))),
        flip=flip,
        source_mask=mask_file(masks, source.name),
        target_mask=mask_file(masks, target.name),
    )


def _placed(points: np.ndarray, image: Path, annotation: Path, flip: bool) -> np.ndarray:
    check_inside(points, image, annotation)
    return np.column_stack([image_size(image)[1] - points[:, 0], points[:, 1]]) if flip else points


def _keypoints(path: Path) -> np.ndarray:
    points = read_annotation(path, "kps")
    if points.ndim != 2 or points.shape[1] != 2:
        raise UserError(f"the keypoints of {path} have shape {points.shape} where (K, 2) is expected")
    return points
