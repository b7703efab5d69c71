"""Attributes of pedestrians: RAPv1 and PA-100K, from their MATLAB annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, read_matlab
from reproductions.datasets.multi_label import LEFT_OUT, MultiLabelImages, check_unique, data_folder, located

RAP_LICENCE = "research only, by agreement"
RAP_SOURCE = "D. Li et al., A Richly Annotated Dataset for Pedestrian Attribute Recognition, 2016"
RAP_FOLDERS = ("RAP", "RAP1", "RAPv1")
RAP_ATTRIBUTES = 51
UNCERTAIN = 2
PARTITIONS = 5
PA100K_LICENCE = "not known"
PA100K_SOURCE = "X. Liu et al., HydraPlus-Net: Attentive Deep Features for Pedestrian Analysis, 2017"
PA100K_FOLDERS = ("PA100K", "PA100k", "PA-100K")
PA100K_ATTRIBUTES = 26


def load_rap(root: Path, split: str, partition: int = 0) -> MultiLabelImages:
    """RAPv1 with its 51 binary attributes: train (33,268) or test (8,317 images) of one of five random partitions.

    Reads ``RAP_annotation/RAP_annotation.mat`` (``imagesname``, ``label``, ``attribute_eng`` and ``partion``, as it is
    spelt) and the images in ``RAP_dataset/``. The attributes are the first 51 of the 92 that are annotated; a value
    of 2, uncertain, which only the gender has, is left out (−1).

    Raises:
        UserError: an unknown split or partition, or a file that is missing or not as expected.
    """
    check_split(split, ("train", "test"), "RAPv1")
    if not 0 <= partition < PARTITIONS:
        raise UserError(f"RAPv1 has no partition {partition}: choose from 0 to {PARTITIONS - 1}")
    folder = data_folder(root, RAP_FOLDERS, "RAP_annotation", "RAPv1")
    path = folder / "RAP_annotation" / "RAP_annotation.mat"
    content = read_matlab(path, squeeze=True)
    try:
        annotation = content["RAP_annotation"]
        names = [str(name) for name in np.atleast_1d(annotation.imagesname)]
        labels = np.atleast_2d(annotation.label)
        attributes = tuple(str(name) for name in annotation.attribute_eng[:RAP_ATTRIBUTES])
        rows = np.atleast_1d(getattr(annotation.partion[partition], split)).astype(np.int64) - 1  # MATLAB counts from 1
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not as expected ({error}): RAPv1's own annotation is expected there") from error
    if len(attributes) != RAP_ATTRIBUTES or labels.shape[1] < RAP_ATTRIBUTES or len(labels) != len(names):
        raise UserError(
            f"{path} has labels of shape {labels.shape}, {len(names)} images and {len(attributes)} attributes where a"
            f" row an image and at least {RAP_ATTRIBUTES} attributes are expected"
        )
    if rows.min() < 0 or rows.max() >= len(names):
        raise UserError(f"{path} has an image outside 1 to {len(names)} in its partition {partition}")
    values = labels[rows, :RAP_ATTRIBUTES]
    _check_values(values, (0, 1, UNCERTAIN), path)
    return MultiLabelImages(
        name="rap",
        title="RAPv1",
        split=split,
        tier="paper",
        paths=located([names[i] for i in rows], (folder / "RAP_dataset",), path),
        targets=np.where(values == UNCERTAIN, LEFT_OUT, values).astype(np.int8),
        classes=_unique(attributes, path),
        licence=RAP_LICENCE,
        source=RAP_SOURCE,
    )


def load_pa100k(root: Path, split: str) -> MultiLabelImages:
    """PA-100K with its 26 attributes: train (80,000), val (10,000) or test (10,000 images).

    Reads ``annotation.mat`` (``attributes``, ``<split>_images_name``, ``<split>_label``) and the images in
    ``release_data/release_data/``, or in ``data/`` as mirrors have them.

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    check_split(split, ("train", "val", "test"), "PA-100K")
    folder = data_folder(root, PA100K_FOLDERS, "annotation.mat", "PA-100K")
    path = folder / "annotation.mat"
    content = read_matlab(path)
    keys = ("attributes", f"{split}_images_name", f"{split}_label")
    if lacking := [key for key in keys if key not in content]:
        raise UserError(f"{path} lacks {lacking[0]}: PA-100K's own annotation is expected there")
    attributes, names = (_texts(content[key]) for key in keys[:2])
    labels = np.asarray(content[keys[2]])
    if len(attributes) != PA100K_ATTRIBUTES or labels.shape != (len(names), PA100K_ATTRIBUTES):
        raise UserError(
            f"{path} has {keys[2]} of shape {labels.shape} and {len(attributes)} attributes where a row for each of"
            f" the {len(names)} images and {PA100K_ATTRIBUTES} attributes are expected"
        )
    _check_values(labels, (0, 1), path)
    return MultiLabelImages(
        name="pa100k",
        title="PA-100K",
        split=split,
        tier="paper",
        paths=located(names, (folder / "release_data" / "release_data", folder / "data"), path),
        targets=labels.astype(np.int8),
        classes=_unique(attributes, path),
        licence=PA100K_LICENCE,
        source=PA100K_SOURCE,
    )


def _texts(cells: np.ndarray) -> tuple[str, ...]:
    """The strings of a MATLAB cell array, each of which is an array of its own."""
    return tuple(str(np.asarray(cell).item()) for cell in cells.ravel())


def _unique(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    check_unique(names, f"the list of attributes of {path}")
    return names


def _check_values(values: np.ndarray, allowed: tuple[int, ...], path: Path) -> None:
    strange = np.setdiff1d(values, allowed)
    if strange.size:
        raise UserError(f"{path} has the label {strange[0]} where one of {', '.join(map(str, allowed))} is expected")
