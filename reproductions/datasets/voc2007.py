"""PASCAL VOC 2007 as a multi-label data set, with both ways to treat objects that are marked difficult."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, existing, read_lines
from reproductions.datasets.multi_label import LEFT_OUT, MultiLabelImages, data_folder, located, targets_of
from reproductions.datasets.pf_pascal import CLASSES

LICENCE = "Flickr terms (images)"
SOURCE = "M. Everingham et al., The PASCAL Visual Object Classes Challenge, 2010; VOC 2007"
FOLDERS = ("VOC2007", "VOCdevkit/VOC2007")
LISTS = {"train": "trainval", "test": "test"}

Difficult = Literal["left out", "kept in training"]


def load_voc2007(root: Path, split: str, difficult: Difficult = "left out") -> MultiLabelImages:
    """The train split, which is the official trainval (5,011 images), or the test split (4,952).

    Reads ``Annotations/*.xml``, ``ImageSets/Main/{trainval,test}.txt`` and ``JPEGImages/*.jpg`` of ``VOC2007``.

    ``difficult`` says what a class gets in an image where all its objects are difficult. "left out": −1 in both splits,
    as in the official class lists and in ML-GCN. "kept in training": 1 for training and −1 for testing, as in SALGL.
    A class with one object that is not difficult is present either way.

    Raises:
        UserError: an unknown split or treatment, or a file that is missing or not as expected.
    """
    check_split(split, tuple(LISTS), "PASCAL VOC 2007")
    if difficult not in get_args(Difficult):
        raise UserError(
            f"there is no treatment {difficult!r} of difficult objects: choose {' or '.join(get_args(Difficult))}"
        )
    folder = data_folder(root, FOLDERS, "ImageSets/Main", "PASCAL VOC 2007")
    listing = folder / "ImageSets" / "Main" / f"{LISTS[split]}.txt"
    stems = read_lines(listing, "an image number a line is expected")
    objects = [_objects(folder / "Annotations" / f"{stem}.xml") for stem in stems]
    present = targets_of([found for found, _ in objects], CLASSES, listing)
    plain = targets_of([found for _, found in objects], CLASSES, listing)
    kept = split == "train" and difficult == "kept in training"
    return MultiLabelImages(
        name="voc2007",
        title="PASCAL VOC 2007",
        split=split,
        tier="paper",
        paths=located([f"{stem}.jpg" for stem in stems], (folder / "JPEGImages",), listing),
        targets=present if kept else np.where(present > plain, LEFT_OUT, present).astype(np.int8),
        classes=CLASSES,
        licence=LICENCE,
        source=SOURCE,
    )


def _objects(path: Path) -> tuple[set[str], set[str]]:
    """The classes in an image, and those of them with an object that is not difficult."""
    try:
        tree = ElementTree.parse(existing(path, "an annotation"))
    except ElementTree.ParseError as error:
        raise UserError(f"the annotation {path} is truncated or no XML: copy it again") from error
    found = [(o.findtext("name", "").strip(), o.findtext("difficult", "0").strip()) for o in tree.iter("object")]
    if unknown := next((name for name, _ in found if name not in CLASSES), None):
        raise UserError(
            f"the annotation {path} has an object {unknown!r}, which is none of VOC's {len(CLASSES)} classes"
        )
    return {name for name, _ in found}, {name for name, mark in found if mark == "0"}
