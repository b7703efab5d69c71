"""NUS-WIDE with its 81 concepts, and its open-vocabulary split into 925 tags and those 81 concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, read_array, read_lines
from reproductions.datasets.multi_label import (
    MultiLabelImages,
    check_disjoint,
    check_unique,
    data_folder,
    located,
)
from reproductions.datasets.safe_pickle import read_pickle

LICENCE = "Flickr terms (images); labels for research"
SOURCE = "T.-S. Chua et al., NUS-WIDE: A Real-World Web Image Database from National University of Singapore, 2009"
OPEN_SOURCE = f"{SOURCE}; split of X. Sun, P. Hu, K. Saenko, DualCoOp, 2022"
FOLDERS = ("nus_wide", "NUS-WIDE", "NUSWIDE", "nuswide")
LISTS = {"train": "TrainImagelist.txt", "test": "TestImagelist.txt"}
OPEN = {
    "train": ("formatted_train_images_filtered.npy", "formatted_train_all_labels_filtered.npy"),
    "zsl": ("formatted_val_images_filtered.npy", "formatted_val_all_labels_filtered.npy"),
    "gzsl": ("formatted_val_gzsl_images_filtered.npy", "formatted_val_gzsl_labels_filtered.npy"),
}
"""For each setting its image names and its labels, all of the latter with a column for each of the 1006."""

Unlabelled = Literal["dropped", "kept"]


def load_nus_wide(root: Path, split: str, unlabelled: Unlabelled = "dropped") -> MultiLabelImages:
    """The official train (161,789) or test (107,859 images) list with the 81 concepts.

    Reads ``ImageList/{Imagelist,TrainImagelist,TestImagelist}.txt``, whose paths have backslashes,
    ``Concepts81.txt``, ``Groundtruth/AllLabels/Labels_<concept>.txt`` with a 0 or 1 for each of the 269,648 images of
    ``Imagelist.txt``, and the images in ``Flickr/``.

    Images with none of the 81 labels are "dropped", as in SALGL (125,449 and 83,898 remain), or "kept"; other papers
    use other subsets still, and a table must say which.

    Raises:
        UserError: an unknown split or treatment, or a file that is missing or not as expected.
    """
    check_split(split, tuple(LISTS), "NUS-WIDE")
    if unlabelled not in get_args(Unlabelled):
        raise UserError(f"images without labels are {' or '.join(get_args(Unlabelled))}, not {unlabelled!r}")
    folder = data_folder(root, FOLDERS, "ImageList", "NUS-WIDE")
    everything, listing = (folder / "ImageList" / name for name in ("Imagelist.txt", LISTS[split]))
    images = read_lines(everything, "an image a line is expected")
    position = {name: i for i, name in enumerate(images)}
    names = read_lines(listing, "an image a line is expected")
    if strange := next((name for name in names if name not in position), None):
        raise UserError(f"{listing} lists {strange}, which {everything} does not: take both from the same download")
    classes = tuple(read_lines(folder / "Concepts81.txt", "a concept a line is expected"))
    check_unique(classes, f"{folder / 'Concepts81.txt'}")
    files = [folder / "Groundtruth" / "AllLabels" / f"Labels_{name}.txt" for name in classes]
    columns = np.stack([_column(file, len(images)) for file in files], axis=1)
    targets = columns[[position[name] for name in names]]
    if unlabelled == "dropped":
        labelled = np.flatnonzero(targets.any(1))
        targets, names = targets[labelled], [names[i] for i in labelled]
    return MultiLabelImages(
        name="nus_wide",
        title="NUS-WIDE-81" + ("" if unlabelled == "dropped" else " with images without labels"),
        split=split,
        tier="paper",
        paths=located(names, (folder / "Flickr",), listing),
        targets=targets,
        classes=classes,
        licence=LICENCE,
        source=SOURCE,
    )


def _column(path: Path, count: int) -> np.ndarray:
    """One concept's 0 or 1 for all images, int8."""
    lines = read_lines(path, "a 0 or 1 for each image of Imagelist.txt is expected")
    if len(lines) != count:
        raise UserError(
            f"{path} has {len(lines)} lines where one for each of the {count} images of Imagelist.txt is expected"
        )
    if strange := next((line for line in lines if line not in ("0", "1")), None):
        raise UserError(f"{path} has the line {strange[:40]!r} where 0 or 1 is expected")
    return np.array(lines, dtype=np.int8)


def load_nus_wide_open(root: Path, setting: str) -> MultiLabelImages:
    """The open-vocabulary sets: "train" with 925 Flickr tags, "zsl" with the 81 concepts, "gzsl" with both.

    In DualCoOp's layout: ``annotations/Tag_all/all_labels.txt`` with the 1006 names, ``annotations/zsl/cls_id.pickle``
    with their numbers under "seen" and "unseen", and there for each setting the names and labels of its images as
    .npy. The columns are the seen classes, then the unseen ones, each by number. Labels of −1 (left out) are kept.
    Images lie in ``images/`` or ``Flickr/``; those without any candidate label are kept, with targets of 0.

    Raises:
        UserError: an unknown setting, or a file that is missing or not as expected.
    """
    check_split(setting, tuple(OPEN), "open-vocabulary NUS-WIDE")
    folder = data_folder(root, FOLDERS, "annotations/zsl", "open-vocabulary NUS-WIDE")
    zsl = folder / "annotations" / "zsl"
    listing = folder / "annotations" / "Tag_all" / "all_labels.txt"
    names = read_lines(listing, "a class a line is expected")
    check_unique(names, str(listing))
    seen, unseen = _seen_and_unseen(zsl / "cls_id.pickle", len(names))
    numbers = {"train": seen, "zsl": unseen, "gzsl": seen + unseen}[setting]
    images, labels = (_array(zsl / file) for file in OPEN[setting])
    if images.ndim != 1 or images.dtype.kind not in "US" or labels.shape != (len(images), len(names)):
        raise UserError(
            f"{zsl / OPEN[setting][1]} has shape {labels.shape} where a row for each of the {images.shape} image names"
            f" of {OPEN[setting][0]} and a column for each of the {len(names)} classes are expected"
        )
    if labels.size and not (labels.min() >= -1 and labels.max() <= 1):
        raise UserError(f"{zsl / OPEN[setting][1]} has labels outside −1, 0 and 1")
    return MultiLabelImages(
        name=f"nus_wide_open_{setting}",
        title=f"NUS-WIDE 925/81, {setting}",
        split="train" if setting == "train" else "test",
        tier="paper",
        paths=located(
            [str(name).strip() for name in images.astype(str)],
            (folder / "images", folder / "Flickr"),
            zsl / OPEN[setting][0],
        ),
        targets=np.ascontiguousarray(labels.astype(np.int8)[:, numbers]),
        classes=tuple(names[c] for c in numbers),
        licence=LICENCE,
        source=OPEN_SOURCE,
    )


def _seen_and_unseen(path: Path, count: int) -> tuple[list[int], list[int]]:
    expected = 'the class numbers under "seen" and "unseen" are expected'
    content = read_pickle(path, expected)
    try:
        seen, unseen = (sorted({int(c) for c in content[key]}) for key in ("seen", "unseen"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} does not hold two lists of numbers: {expected}") from error
    if strange := next((c for c in (*seen, *unseen) if not 0 <= c < count), None):
        raise UserError(f"{path} has the class number {strange}, but there are {count} classes")
    check_disjoint(map(str, seen), map(str, unseen), str(path))
    return seen, unseen


def _array(path: Path) -> np.ndarray:
    """An array, left on disk: the labels are a gigabyte."""
    return read_array(path, "a whole .npy file of plain numbers or text is expected", mapped=True)
