"""The data sets of blind matching by name, each read once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from reproductions import UserError
from reproductions.datasets.cifar import load_cifar
from reproductions.datasets.class_folders import load_cinic10, load_class_folders
from reproductions.datasets.coco_captions import load_coco_captions
from reproductions.datasets.files import folder_or_zip
from reproductions.datasets.imagenet100 import load_imagenet100
from reproductions.datasets.labelled_images import LabelledImages
from reproductions.datasets.tiny_imagenet import load_tiny_imagenet_files

LOADERS: dict[str, Callable[[Path], LabelledImages]] = {
    "cifar10": partial(load_cifar, name="cifar10"),
    "cifar100": partial(load_cifar, name="cifar100"),
    "cinic10": load_cinic10,
    "imagenet100": load_imagenet100,
    "coco_captions": load_coco_captions,
    "tiny_imagenet": load_tiny_imagenet_files,
}


@cache
def load_labelled(dataset: str, folder: Path) -> LabelledImages:
    """A data set in the folder: one of ``LOADERS``, else the folder or zip of classes that has this name there.

    Raises:
        UserError: it is not there, or not as expected.
    """
    if dataset in LOADERS:
        return LOADERS[dataset](folder)
    place = folder_or_zip(folder, dataset)
    if place is None:
        raise UserError(
            f"{folder} has no folder {dataset!r} of classes, and it is none of the known data sets {', '.join(LOADERS)}"
        )
    return load_class_folders(place)
