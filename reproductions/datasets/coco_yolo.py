"""COCO images with YOLO labels, boxes and all: small samples of MS-COCO for recognition and localisation.

``images/<split>/*.jpg`` and ``labels/<split>/*.txt`` in a folder, or in a zip of it; a line of a label file is a class
number and a box, x and y of its centre, width and height, as parts of the image's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, existing, read_arrays
from reproductions.datasets.coco import CLASSES, LICENCE, SOURCE
from reproductions.datasets.files import Tree, first_folder, is_image, open_tree, unpacked
from reproductions.datasets.multi_label import MultiLabelImages
from reproductions.storage import content_hash

SPLITS = {"train": "train2017", "val": "val2017"}
IMAGES = "images"
PLACES = ("coco[0-9]*.zip", "coco[0-9]*")
PATCHES = "precomputed/coco128_mnv2_patches.npz"
TEXT = "embeddings/label_embeddings.npz"
CHANNELS, GRID = 1280, 7
BORDER = 1e-3
"""How far a box may reach out of its image, as a part of it, for the sake of rounding."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The objects in an image.

    Attributes:
        corners: float64 ``(k, 4)``, x₀, y₀, x₁, y₁ in [0, 1].
        objects: int64 ``(k,)``, the class in each box.
    """

    corners: np.ndarray
    objects: np.ndarray


NOTHING = Boxes(np.zeros((0, 4)), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class BoxedImages(MultiLabelImages):
    """Multi-label images whose objects are located; ``objects`` count COCO's 80 classes, whatever ``classes`` are."""

    boxes: tuple[Boxes, ...] = ()


@dataclass(frozen=True, eq=False)
class CocoPatches:
    """Features of the images' patches with their labels, and vectors of the class names.

    Attributes:
        features: float32 ``(n, 1280, 7, 7)``, MobileNetV2's last map.
        targets: int8 ``(n, 80)``.
        files: the n image names.
        clip: float32 ``(80, 512)``, CLIP ViT-B/32's text vectors of "a {name}".
        glove: float32 ``(80, 300)``.
        boxes: of each image, where the images with YOLO labels are in the same folder.
    """

    split: str
    features: np.ndarray
    targets: np.ndarray
    files: tuple[str, ...]
    clip: np.ndarray
    glove: np.ndarray
    boxes: tuple[Boxes, ...] | None
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def sha256(self) -> str:
        """Hash of all features, labels, vectors and file names."""
        return content_hash(self.features, self.targets, self.clip, self.glove, list(self.files))


def load_coco_yolo(folder: Path, split: str, storage: Path) -> BoxedImages:
    """The train or val split; a zip in the folder is unpacked once, below ``storage``.

    Images are in the order of their names. One without objects has an empty label file or, as is the rule for these
    files, none; a label file without an image is not read.

    Raises:
        UserError: an unknown split, no such data, or a label file that is not as expected.
    """
    check_split(split, tuple(SPLITS), "COCO with YOLO labels")
    place = unpacked(existing(folder, "the folder of COCO with YOLO labels"), (IMAGES,), storage)
    if place is None:
        raise UserError(f"{folder} has no COCO with YOLO labels: images/ and labels/ are expected, or a zip of them")
    with open_tree(place) as tree:
        found = _labelled(tree, SPLITS[split])
    return BoxedImages(
        name="coco_yolo",
        title="COCO with YOLO labels",
        split=split,
        tier="local",
        paths=tuple(place / IMAGES / SPLITS[split] / name for name in found),
        targets=_targets(found),
        classes=CLASSES,
        licence=LICENCE,
        source=SOURCE,
        boxes=tuple(found.values()),
    )


def load_coco_patches(folder: Path, split: str) -> CocoPatches:
    """The train or val split of ``precomputed/coco128_mnv2_patches.npz`` with ``embeddings/label_embeddings.npz``.

    Where the images with YOLO labels are in the folder too, file names and labels have to agree with theirs.

    Raises:
        UserError: an unknown split, or a file that is missing, not as expected, or disagrees.
    """
    check_split(split, tuple(SPLITS), "COCO's patch features")
    part = SPLITS[split]
    path = folder / PATCHES
    features, labels, names = read_arrays(path, f"{part}_feat", f"{part}_label", f"{part}_file")
    clip, glove = read_arrays(folder / TEXT, "coco_clip_vit_b32", "coco_glove300")
    shapes = {
        f"{part}_feat of {path}": (features, (len(names), CHANNELS, GRID, GRID)),
        f"{part}_label of {path}": (labels, (len(names), len(CLASSES))),
        f"coco_clip_vit_b32 of {folder / TEXT}": (clip, (len(CLASSES), 512)),
        f"coco_glove300 of {folder / TEXT}": (glove, (len(CLASSES), 300)),
    }
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise UserError(f"{name} has shape {array.shape} where {shape} is expected")
    files, targets = tuple(str(name) for name in names), labels.astype(np.int8)
    return CocoPatches(
        split=split,
        features=features.astype(np.float32),
        targets=targets,
        files=files,
        clip=clip.astype(np.float32),
        glove=glove.astype(np.float32),
        boxes=_boxes_of(folder, part, files, targets, path),
    )


def _boxes_of(
    folder: Path, part: str, files: tuple[str, ...], targets: np.ndarray, path: Path
) -> tuple[Boxes, ...] | None:
    place = folder if (folder / "labels").is_dir() else None
    place = place or next((p for p in sorted(folder.glob("*.zip")) if first_folder(p) == IMAGES), None)
    if place is None:
        return None
    with open_tree(place) as tree:
        found = _labelled(tree, part)
    if set(found) != set(files):
        strange = sorted(set(found) ^ set(files))
        raise UserError(f"{path} and {place} have {len(strange)} images of {part} not in common, {strange[0]} for one")
    ordered = {name: found[name] for name in files}
    if (differing := (_targets(ordered) != targets).any(1)).any():
        raise UserError(f"{path} and {place} disagree about the labels of {files[int(differing.argmax())]}")
    return tuple(ordered.values())


def _labelled(tree: Tree, part: str) -> dict[str, Boxes]:
    """The boxes in every image of a split, by image name."""
    images = [PurePosixPath(name) for name in tree.names if name.startswith(f"{IMAGES}/{part}/") and is_image(name)]
    if not images:
        raise UserError(f"{tree.path} has no image in {IMAGES}/{part}/")
    present = set(tree.names)
    labels = {image.name: f"labels/{part}/{image.stem}.txt" for image in images}
    if present.isdisjoint(labels.values()):
        raise UserError(f"{tree.path} has no label file of an image in labels/{part}/: unpack it completely")
    return {image: _read_boxes(tree, name) if name in present else NOTHING for image, name in labels.items()}


def _read_boxes(tree: Tree, name: str) -> Boxes:
    where, expected = f"{tree.path}/{name}", "a class number, x, y, width and height are expected a line"
    lines = [line.split() for line in tree.read(name).decode(errors="replace").splitlines() if line.strip()]
    try:
        rows = np.array([[float(x) for x in line] for line in lines], dtype=np.float64).reshape(len(lines), 5)
        objects = np.array([int(line[0]) for line in lines], dtype=np.int64)
    except ValueError as error:
        raise UserError(f"{where} is not as expected: {expected}") from error
    if strange := [c for c in objects if not 0 <= c < len(CLASSES)]:
        raise UserError(f"{where} has the class {strange[0]}, but there are {len(CLASSES)} classes")
    centre, half = rows[:, 1:3], rows[:, 3:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    if not ((half > 0).all() and (corners > -BORDER).all() and (corners < 1 + BORDER).all()):
        raise UserError(
            f"{where} has a box that is empty or reaches out of its image: {expected}, as parts of the image"
        )
    return Boxes(corners.clip(0, 1), objects)


def _targets(found: dict[str, Boxes]) -> np.ndarray:
    targets = np.zeros((len(found), len(CLASSES)), dtype=np.int8)
    for row, boxes in zip(targets, found.values(), strict=True):
        row[boxes.objects] = 1
    return targets
