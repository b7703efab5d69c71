"""CINIC-10, and any folder or zip of ``<class>/<image>``: the folders name the classes."""

from __future__ import annotations

from pathlib import Path

from reproductions import UserError
from reproductions.datasets.files import folder_or_zip, open_tree
from reproductions.datasets.labelled_images import LabelledImages, from_members, images_by_class
from reproductions.datasets.prompts import IMAGENET, sentences

CINIC10_LICENCE = "MIT (images of ImageNet: its terms of access)"
CINIC10_SOURCE = "L. N. Darlow et al., CINIC-10 Is Not ImageNet or CIFAR-10, 2018"
CINIC10_FOLDERS = ("cinic-10", "CINIC-10", "cinic10")
CINIC10_COUNT, CINIC10_CLASSES = 90_000, 10


def load_cinic10(folder: Path) -> LabelledImages:
    """The 90,000 images of the set for validation, ``valid/<class>/<image>``, in the order of classes and names.

    Raises:
        UserError: the data set is not there, or has not ten classes.
    """
    place = next((p for name in CINIC10_FOLDERS if (p := folder_or_zip(folder, name)) is not None), None)
    if place is None:
        raise UserError(f"{folder} has no CINIC-10: {CINIC10_FOLDERS[0]}/valid/<class>/<image> is expected there")
    with open_tree(place) as tree:
        members = images_by_class(tree, "valid")
    if len(members) != CINIC10_CLASSES:
        raise UserError(f"{place} has {len(members)} classes in valid/, but CINIC-10 has {CINIC10_CLASSES}")
    images, labels = from_members(place, members)
    return LabelledImages(
        name="cinic10",
        title="CINIC-10",
        tier="paper" if len(images) == CINIC10_COUNT else "local",
        images=images,
        labels=labels,
        classes=tuple(members),
        texts=sentences(tuple(members), IMAGENET),
        licence=CINIC10_LICENCE,
        source=CINIC10_SOURCE,
    )


def load_class_folders(place: Path) -> LabelledImages:
    """A folder or zip of one's own; underscores in the names of classes are read as spaces.

    Raises:
        UserError: there are no images of classes, or classes lie below several folders.
    """
    with open_tree(place) as tree:
        members = images_by_class(tree)
    images, labels = from_members(place, members)
    classes = tuple(name.replace("_", " ") for name in members)
    return LabelledImages(
        name=place.stem,
        title=place.stem,
        tier="local",
        images=images,
        labels=labels,
        classes=classes,
        texts=sentences(classes, IMAGENET),
        licence="not known",
        source=str(place.name),
    )
