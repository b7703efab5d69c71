"""VG-500: Visual Genome with the 500 most frequent object classes as labels, in the layout of SSGRL's release."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, read_json, read_lines
from reproductions.datasets.multi_label import MultiLabelImages, data_folder, located

LICENCE = "CC BY 4.0"
SOURCE = "R. Krishna et al., Visual Genome, 2017; labels of T. Chen et al., SSGRL, 2019"
FOLDERS = ("VG", "VisualGenome", "visual_genome")
LISTS = {"train": "train_list_500.txt", "test": "test_list_500.txt"}
LABELS = "vg_category_500_labels_index.json"
CLASSES = 500


def load_vg500(root: Path, split: str) -> MultiLabelImages:
    """The train (98,249) or test (10,000 images) split.

    ``VG/{train,test}_list_500.txt`` have an image file a line, ``VG/vg_category_500_labels_index.json`` maps each of
    them to its class numbers, from 0 to 499, and the images are in ``VG/VG_100K/``, or partly in ``VG/VG_100K_2/`` as
    they are downloaded. The release does not name the classes: here their names are their numbers.

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    check_split(split, tuple(LISTS), "VG-500")
    folder = data_folder(root, FOLDERS, LABELS, "VG-500")
    listing, path = folder / LISTS[split], folder / LABELS
    names = read_lines(listing, "an image file a line is expected")
    expected = "an object of image files with lists of class numbers is expected"
    labels = read_json(path, expected)
    if not isinstance(labels, dict):
        raise UserError(f"{path} is not as it should be: {expected}")
    targets = np.zeros((len(names), CLASSES), dtype=np.int8)
    for i, name in enumerate(names):
        if name not in labels:
            raise UserError(f"{path} has no labels of {name}, which {listing} lists")
        numbers = labels[name]
        if not isinstance(numbers, list) or not all(isinstance(c, int) and 0 <= c < CLASSES for c in numbers):
            raise UserError(
                f"{path} gives {name} the labels {str(numbers)[:60]}: numbers from 0 to {CLASSES - 1} are expected"
            )
        targets[i, numbers] = 1
    return MultiLabelImages(
        name="vg500",
        title="VG-500",
        split=split,
        tier="paper",
        paths=located(names, (folder / "VG_100K", folder / "VG_100K_2"), listing),
        targets=targets,
        classes=tuple(str(c) for c in range(CLASSES)),
        licence=LICENCE,
        source=SOURCE,
    )
