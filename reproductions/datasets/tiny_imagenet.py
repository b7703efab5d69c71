"""Tiny-ImageNet: 200 classes of ImageNet at 64×64, decoded for the classes asked for only."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import read_json, read_text
from reproductions.datasets.files import Tree, is_image, open_tree
from reproductions.datasets.images import ImageSet
from reproductions.datasets.labelled_images import LabelledImages, from_members
from reproductions.datasets.prompts import IMAGENET, sentences

LICENCE = "ImageNet terms of access (non-commercial research and education)"
SOURCE = "Y. Le, X. Yang, Tiny ImageNet Visual Recognition Challenge, 2015"
SIDE = 64
CLASSES = 200
BASE = 150
WORDS, NAMES = "words.txt", "tinyimagenet200_names.json"
CANDIDATES = {
    "train": ("tiny-imagenet-200", "tiny-imagenet-200.zip", "tinyimagenet200_train50perclass.zip"),
    "val": ("tiny-imagenet-200", "tiny-imagenet-200.zip", "tinyimagenet200_val10000.zip"),
}
"""Where a split may lie, the first that exists counts: officially, or in a zip of ``<split>/<wnid>/*.JPEG`` alone."""


def load_tiny_imagenet(folder: Path, split: str, classes: tuple[str, ...]) -> ImageSet:
    """The images of some classes (wnids) of the train or val split; labels are positions in ``classes``.

    Raises:
        UserError: there is no Tiny-ImageNet in the folder, it lacks a class, or an image is broken or not 64×64.
    """
    with open_tree(_place(folder, split)) as tree:
        members = _members(tree, split)
        if missing := [c for c in classes if c not in members]:
            raise UserError(f"{tree.path} has no image of the class {missing[0]} in its {split} split")
        images = [tree.pixels(name, "RGB", SIDE) for c in classes for name in members[c]]
    return ImageSet(
        name="tiny_imagenet",
        title=f"Tiny-ImageNet, {len(classes)} classes of {split}",
        tier="local",
        images=np.stack(images),
        labels=np.repeat(np.arange(len(classes)), [len(members[c]) for c in classes]),
        classes=classes,
        licence=LICENCE,
        source=f"{SOURCE}; {tree.path.name}",
    )


def load_tiny_imagenet_files(folder: Path) -> LabelledImages:
    """All images for validation, which stay on disk, by classes in the order of their wnids.

    Names are the first of ``words.txt``, in the data set or beside it, or of ``tinyimagenet200_names.json``.

    Raises:
        UserError: there is no Tiny-ImageNet in the folder, or no names of its classes.
    """
    place = _place(folder, "val")
    with open_tree(place) as tree:
        members = _members(tree, "val")
        names = _names(tree, folder)
    if lacking := [wnid for wnid in members if wnid not in names]:
        raise UserError(f"{folder} has no name of the class {lacking[0]} of Tiny-ImageNet: put a whole {WORDS} there")
    images, labels = from_members(place, {wnid: sorted(members[wnid]) for wnid in sorted(members)})
    classes = tuple(names[wnid].split(",")[0].strip() for wnid in sorted(members))
    return LabelledImages(
        name="tiny_imagenet",
        title="Tiny-ImageNet",
        tier="local",
        images=images,
        labels=labels,
        classes=classes,
        texts=sentences(classes, IMAGENET),
        licence=LICENCE,
        source=f"{SOURCE}; {place.name}",
    )


def wnids(folder: Path, split: str) -> tuple[str, ...]:
    """The classes that have images in the split, sorted."""
    with open_tree(_place(folder, split)) as tree:
        return tuple(sorted(_members(tree, split)))


def base_and_novel(wnids: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """150 classes to train on and 50 for few-shot episodes, each sorted: this project's own split.

    The sorted wnids are permuted by NumPy's default generator with seed 0; the first 150 are the base classes.

    Raises:
        ValueError: they are not 200 different ones.
    """
    ordered = sorted(set(wnids))
    if len(ordered) != CLASSES:
        raise ValueError(f"Tiny-ImageNet has {CLASSES} classes, but {len(ordered)} were given")
    permuted = [ordered[k] for k in np.random.default_rng(0).permutation(CLASSES)]
    return tuple(sorted(permuted[:BASE])), tuple(sorted(permuted[BASE:]))


def _place(folder: Path, split: str) -> Path:
    if split not in CANDIDATES:
        raise UserError(f"there is no labelled split {split!r} of Tiny-ImageNet: choose from {', '.join(CANDIDATES)}")
    places = [folder / name for name in CANDIDATES[split]]
    if found := next((p for p in places if p.exists()), None):
        return found
    raise UserError(f"{folder} has no Tiny-ImageNet: one of {', '.join(CANDIDATES[split])} is expected there")


def _members(tree: Tree, split: str) -> dict[str, list[str]]:
    """The file names of every class, by class folder or, officially for val, by ``val_annotations.txt``."""
    pattern = re.compile(rf"(?:[^/]+/)?{split}/(?P<wnid>n\d{{8}})/(?:images/)?[^/]+")
    listed = next((n for n in tree.names if PurePosixPath(n).name == "val_annotations.txt"), None)
    members: dict[str, list[str]] = {}
    if split == "val" and listed is not None:
        present = set(tree.names)
        for line in tree.read(listed).decode(errors="replace").splitlines():
            file, wnid, *_ = (*line.split("\t"), "")
            name = (PurePosixPath(listed).parent / "images" / file).as_posix()
            if name not in present:
                raise UserError(f"{tree.path}/{listed} lists {file!r}, but {tree.path}/{name} is missing")
            members.setdefault(wnid, []).append(name)
    else:
        for name in tree.names:
            if is_image(name) and (match := pattern.fullmatch(name)):
                members.setdefault(match["wnid"], []).append(name)
    if not members:
        raise UserError(f"{tree.path} has no image of the {split} split: {split}/<wnid>/ is expected in it")
    return members


def _names(tree: Tree, folder: Path) -> dict[str, str]:
    """The names of classes by wnid, several with commas between."""
    inside = next((name for name in tree.names if PurePosixPath(name).name == WORDS), None)
    if inside is None and (folder / NAMES).is_file():
        found = read_json(folder / NAMES, "names of classes by wnid are expected")
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
            raise UserError(f"{folder / NAMES} must hold an object of names of classes by wnid")
        return found
    expected = f"lines of a wnid, a tab and names ({WORDS}) are expected"
    text = read_text(folder / WORDS, expected) if inside is None else tree.read(inside).decode(errors="replace")
    return {wnid: name for wnid, _, name in (line.partition("\t") for line in text.splitlines())}
