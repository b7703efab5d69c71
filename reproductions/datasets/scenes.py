"""Scenes of several real handwritten digits on cluttered backgrounds: the embedded multi-label data set.

Every scene is composed of scans of ``digits``, at random places that do not overlap, among fragments of other scans and
noise. A scan is used for training or for testing, never for both. Labels are the digits that are present or, in
coloured scenes, the pairs of a colour and a digit; the boxes of all digits are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reproductions.datasets.digits import load_digits
from reproductions.storage import content_hash

LICENCE, SOURCE = "CC BY 4.0 (UCI Machine Learning Repository)", "composed of scikit-learn's handwritten digits"
COLOURS = {"red": (1.0, 0.25, 0.2), "green": (0.2, 0.9, 0.3), "blue": (0.3, 0.4, 1.0), "yellow": (1.0, 0.9, 0.2)}
SIDE = 28  # px of a scene; a digit has 8
TRAINING_SCANS = 1200  # of the 1797, in the order of the files: the writers of the first ones differ from the others'
DIGITS = (2, 4)  # a scene has from two to four digits
FRAGMENTS, FRAGMENT = 6, 4  # pieces of other scans, and their side in px
NOISE = 0.15  # at most, of the range of pixels
PADDING = -1


@dataclass(frozen=True, eq=False)
class Scenes:
    """Composed images with the labels and boxes of what is in them.

    Attributes:
        images: float32 ``(n, channels, SIDE, SIDE)`` in [0, 1].
        labels: bool ``(n, C)``.
        boxes: int64 ``(n, k, 4)``, x₀, y₀, x₁, y₁ in px, the last two exclusive.
        objects: int64 ``(n, k)``, the class in each box; ``PADDING`` where there is none.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.bool_]
    boxes: NDArray[np.int64]
    objects: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def sha256(self) -> str:
        """Hash of all pixels, labels and boxes."""
        return content_hash(self.images, self.labels, self.boxes, self.objects, list(self.classes))


def scene_classes(colours: bool) -> tuple[str, ...]:
    """``"0"`` … ``"9"``, or with colours ``"red 0"`` … ``"yellow 9"``."""
    digits = tuple(str(d) for d in range(10))
    return tuple(f"{colour} {d}" for colour in COLOURS for d in digits) if colours else digits


def compose_scenes(
    split: str, count: int, seed: int = 0, colours: bool = False, allowed: Sequence[int] | None = None
) -> Scenes:
    """Scenes of the digits of a split.

    Args:
        split: "train" or "test"; their scans have nothing in common.
        count: number of scenes.
        seed: of everything that is drawn.
        colours: RGB scenes, and labels that are pairs of a colour and a digit; else grey ones.
        allowed: the classes that may appear, all alike; every class when left out. Fragments have any colour.
    """
    digits, classes = load_digits(), scene_classes(colours)
    chosen = {"train": slice(None, TRAINING_SCANS), "test": slice(TRAINING_SCANS, None)}[split]
    scans, numbers = digits.images[chosen, 0], digits.labels[chosen]
    of_number = [np.flatnonzero(numbers == d) for d in range(10)]
    rng = np.random.default_rng([seed, len(scans), int(colours)])
    palette = np.array(list(COLOURS.values()) if colours else [(1.0,)], np.float32)
    kinds = np.arange(len(classes)) if allowed is None else np.asarray(allowed)
    most, size = DIGITS[1], scans.shape[-1]
    images = rng.uniform(0, NOISE, (count, palette.shape[1], SIDE, SIDE)).astype(np.float32)
    boxes = np.full((count, most, 4), PADDING)
    objects = np.full((count, most), PADDING)
    for image, box, object_ in zip(images, boxes, objects, strict=True):
        for _ in range(FRAGMENTS):
            top, left = rng.integers(0, size - FRAGMENT + 1, 2)
            piece = scans[rng.integers(len(scans)), top : top + FRAGMENT, left : left + FRAGMENT]
            _draw(image, piece, rng.integers(0, SIDE - FRAGMENT + 1, 2), palette[rng.integers(len(palette))])
        for k, (y, x) in enumerate(_places(rng, int(rng.integers(DIGITS[0], most + 1)), size)):
            colour, number = divmod(int(rng.choice(kinds)), 10)
            # No fragment reaches into a digit, and nothing but the digit tells where it is.
            image[:, y : y + size, x : x + size] = rng.uniform(0, NOISE, (len(image), size, size))
            _draw(image, scans[rng.choice(of_number[number])], (y, x), palette[colour])
            box[k] = x, y, x + size, y + size
            object_[k] = 10 * colour + number
    labels = np.zeros((count, len(classes)), bool)
    scene, place = np.nonzero(objects != PADDING)
    labels[scene, objects[scene, place]] = True
    return Scenes(images, labels, boxes, objects, classes)


def _draw(image: NDArray[np.float32], piece: NDArray, corner: object, colour: NDArray[np.float32]) -> None:
    y, x = np.asarray(corner)
    height, width = piece.shape
    part = image[:, y : y + height, x : x + width]
    np.maximum(part, colour[:, None, None] * piece, out=part)


def _places(rng: np.random.Generator, count: int, size: int) -> list[tuple[int, int]]:
    """Top left corners of squares that do not overlap."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        y, x = (int(v) for v in rng.integers(0, SIDE - size + 1, 2))
        if all(abs(y - v) >= size or abs(x - u) >= size for v, u in found):
            found.append((y, x))
    return found
