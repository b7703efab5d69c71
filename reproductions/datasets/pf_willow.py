"""PF-WILLOW: 100 photographs in ten sub-classes with ten keypoints each, as published or as a list of pairs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.correspondence import (
    KeypointPair,
    KeypointPairs,
    check_inside,
    extent,
    mask_file,
    read_annotation,
    read_columns,
)

KEYPOINTS = 10
LICENCE = "academic use only"
SOURCE = "B. Ham, M. Cho, C. Schmid, J. Ponce, Proposal Flow, CVPR 2016"


def load_pf_willow(root: Path, masks: Path | None = None) -> KeypointPairs:
    """The 900 ordered pairs within a sub-class; ``masks`` is a folder of ``<sub-class>/<image>.png``.

    Reads ``root/PF-dataset-WILLOW`` (images with their annotations) or else ``root/PF-WILLOW`` (images with a list of
    pairs). τ is the longer side of the tight box of the target keypoints.

    Raises:
        UserError: neither folder is there, or a file is missing or not as expected.
    """
    published, listed = root / "PF-dataset-WILLOW", root / "PF-WILLOW"
    if published.is_dir():
        pairs = _published(published, masks)
    elif listed.is_dir():
        pairs = _listed(listed, masks)
    else:
        raise UserError(f"PF-WILLOW is missing: {root} holds neither {published.name} nor {listed.name}")
    return KeypointPairs(
        name="pf_willow",
        title="PF-WILLOW",
        split="test",
        tier="paper",
        pairs=pairs,
        convention="keypoints",
        licence=LICENCE,
        source=SOURCE,
    )


def _published(folder: Path, masks: Path | None) -> tuple[KeypointPair, ...]:
    keypoints: dict[Path, np.ndarray] = {}
    for image in sorted(folder.glob("*/*.png")):
        annotation = image.with_suffix(".mat")
        matrix = read_annotation(annotation, "pts_coord")
        if matrix.shape != (2, KEYPOINTS) or not np.isfinite(matrix).all():
            raise UserError(f"{annotation} holds a matrix of {matrix.shape} where 2 x {KEYPOINTS} numbers are expected")
        keypoints[image] = np.ascontiguousarray(matrix.T)
        check_inside(keypoints[image], image, annotation)
    if not keypoints:
        raise UserError(f"{folder} holds no images: <sub-class>/<image>.png are expected")
    return tuple(
        _pair(source, target, keypoints[source], keypoints[target], masks)
        for _, images in itertools.groupby(keypoints, key=lambda image: image.parent)
        for source, target in itertools.permutations(images, 2)
    )


def _listed(folder: Path, masks: Path | None) -> tuple[KeypointPair, ...]:
    table = folder / "test_pairs.csv"
    pairs = []
    for line, row in enumerate(read_columns(table, 2 + 4 * KEYPOINTS), start=2):
        source, target = (folder.joinpath(*Path(name.strip()).parts[-2:]) for name in row[:2])
        try:
            numbers = np.array(row[2 : 2 + 4 * KEYPOINTS], dtype=np.float64)
        except ValueError as error:
            raise UserError(f"line {line} of {table} holds a coordinate that is no number") from error
        if not np.isfinite(numbers).all():
            raise UserError(f"line {line} of {table} lacks a keypoint: {4 * KEYPOINTS} finite coordinates are expected")
        source_points, target_points = np.ascontiguousarray(numbers.reshape(2, 2, KEYPOINTS).swapaxes(1, 2))
        check_inside(source_points, source, table)
        check_inside(target_points, target, table)
        pairs.append(_pair(source, target, source_points, target_points, masks))
    return tuple(pairs)


def _pair(
    source: Path, target: Path, source_points: np.ndarray, target_points: np.ndarray, masks: Path | None
) -> KeypointPair:
    return KeypointPair(
        source=source,
        target=target,
        source_keypoints=source_points,
        target_keypoints=target_points,
        category=source.parent.name,
        threshold=extent(target_points),
        source_mask=mask_file(masks, f"{source.parent.name}/{source.name}"),
        target_mask=mask_file(masks, f"{target.parent.name}/{target.name}"),
    )
