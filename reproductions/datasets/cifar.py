"""The test images of CIFAR-10 and CIFAR-100: the official pickles or binary files, or folders of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.files import open_tree
from reproductions.datasets.labelled_images import Images, InMemory, LabelledImages, from_members, images_by_class
from reproductions.datasets.prompts import CIFAR, sentences
from reproductions.datasets.safe_pickle import read_pickle

LICENCE = "none stated"
SOURCE = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
SIDE, COUNT = 32, 10_000
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    *("apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy"),
    *("bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock"),
    *("cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish"),
    *("forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn mower", "leopard", "lion"),
    *("lizard", "lobster", "man", "maple tree", "motorcycle", "mountain", "mouse", "mushroom", "oak tree", "orange"),
    *("orchid", "otter", "palm tree", "pear", "pickup truck", "pine tree", "plain", "plate", "poppy", "porcupine"),
    *("possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk"),
    *("skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet pepper", "table", "tank"),
    *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale"),
    *("willow tree", "wolf", "woman", "worm"),
)
"""The fine classes, in the order of their numbers."""


@dataclass(frozen=True)
class Layout:
    """Where a data set lies in a folder.

    Attributes:
        pickled, binary: the files of its test images as distributed.
        key: of the labels in the pickle.
        label_bytes: before each image of the binary file; the label is the last of them.
        folders: places of ``test/<class>/<image>``, with wildcards.
    """

    title: str
    classes: tuple[str, ...]
    pickled: str
    key: str
    binary: str
    label_bytes: int
    folders: tuple[str, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """All places, by precedence."""
        return (self.pickled.split("/")[0], self.binary.split("/")[0], *self.folders)


LAYOUTS = {
    "cifar10": Layout(
        *("CIFAR-10", CIFAR10, "cifar-10-batches-py/test_batch", "labels", "cifar-10-batches-bin/test_batch.bin", 1),
        ("cifar10", "CIFAR-10", "cifar10.zip", "cifar10_*test*.zip"),
    ),
    "cifar100": Layout(
        *("CIFAR-100", CIFAR100, "cifar-100-python/test", "fine_labels", "cifar-100-binary/test.bin", 2),
        ("cifar100", "CIFAR-100", "cifar100.zip", "cifar100_*test*.zip"),
    ),
}


def load_cifar(folder: Path, name: str) -> LabelledImages:
    """The 10,000 test images of "cifar10" or, with the fine labels, "cifar100".

    As distributed, they are read into memory, in the official order. Of ``test/<class>/<image>``, in a folder or a zip,
    they stay on disk, in the order of their names; these are not the paper's, as they may have been compressed again.

    Raises:
        UserError: the data set is not there, or a file is not as expected.
    """
    layout = LAYOUTS[name]
    pickled, binary = folder / layout.pickled, folder / layout.binary
    images: Images
    official = pickled.exists() or binary.exists()
    if pickled.exists():
        images, labels = _from_pickle(pickled, layout)
    elif binary.exists():
        images, labels = _from_binary(binary, layout)
    else:
        images, labels = _from_folder(folder, layout)
    return LabelledImages(
        name=name,
        title=layout.title,
        tier="paper" if official and len(images) == COUNT else "local",
        images=images,
        labels=labels,
        classes=layout.classes,
        texts=sentences(layout.classes, CIFAR),
        licence=LICENCE,
        source=SOURCE,
    )


def _from_pickle(path: Path, layout: Layout) -> tuple[InMemory, np.ndarray]:
    expected = f"the test batch of {layout.title} in Python's format is expected"
    content = read_pickle(path, expected, encoding="latin1")  # written by Python 2
    try:
        pixels, labels = np.asarray(content["data"]), list(content[layout.key])
    except (KeyError, TypeError):
        raise UserError(f'{path} holds no "data" and "{layout.key}": {expected} there') from None
    if pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE**2 or pixels.dtype != np.uint8:
        raise UserError(f"{path} holds {pixels.dtype} {pixels.shape}, but uint8 (n, {3 * SIDE**2}) is expected there")
    return _in_memory(pixels, labels, path, layout)


def _from_binary(path: Path, layout: Layout) -> tuple[InMemory, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    record = layout.label_bytes + 3 * SIDE**2
    if not len(content) or len(content) % record:
        raise UserError(f"{path} has {len(content)} bytes, but a multiple of {record} is expected: copy it again")
    records = content.reshape(-1, record)
    labels = records[:, layout.label_bytes - 1].tolist()
    return _in_memory(records[:, layout.label_bytes :], labels, path, layout)


def _in_memory(pixels: np.ndarray, labels: Sequence[int], path: Path, layout: Layout) -> tuple[InMemory, np.ndarray]:
    count = len(layout.classes)
    if len(labels) != len(pixels) or not all(isinstance(k, int | np.integer) and 0 <= k < count for k in labels):
        raise UserError(f"{path} must hold a label from 0 to {count - 1} for each of its {len(pixels)} images")
    channels_last = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return InMemory(np.ascontiguousarray(channels_last)), np.array(labels, dtype=np.int64)


def _from_folder(folder: Path, layout: Layout) -> tuple[Images, np.ndarray]:
    place = next((path for name in layout.folders for path in sorted(folder.glob(name))), None)
    if place is None:
        places = f"{layout.pickled}, {layout.binary} or {layout.folders[0]}/test/<class>/<image>"
        raise UserError(f"{folder} has no {layout.title}: {places} is expected there")
    with open_tree(place) as tree:
        members = {name.replace("_", " "): found for name, found in images_by_class(tree, "test").items()}
    if odd := sorted(set(members) ^ set(layout.classes)):
        what = "has the unknown class" if odd[0] in members else "lacks the class"
        raise UserError(f"{place} {what} {odd[0]!r}: the {len(layout.classes)} classes of {layout.title} are expected")
    return from_members(place, {name: members[name] for name in layout.classes})
