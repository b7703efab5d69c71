"""Vectors of images and of the names of their classes, made in advance, and people's answers to the same images.

``precomputed/<name>_mnv2_minilm.npz`` in a folder: MobileNetV2's pooled features of some images a class (``feat``,
``label``) and all-MiniLM-L6-v2's vectors of the class names (``minilm``). CIFAR-10H, the answers of about fifty people
to each of CIFAR-10's 10,000 test images, lies in ``cifar10h/cifar10h-probs.npy``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reproductions import UserError
from reproductions.datasets.annotations import existing, read_array, read_arrays
from reproductions.storage import content_hash

LICENCE = "that of the images: CIFAR-10, or ImageNet's terms (research)"
SOURCE = "MobileNetV2 and all-MiniLM-L6-v2"
PLACES = {
    "CIFAR-10": "precomputed/cifar10_mnv2_minilm.npz",
    "Tiny-ImageNet": "precomputed/tinyimagenet200_mnv2_minilm.npz",
}
HUMAN = "cifar10h/cifar10h-probs.npy"
HUMAN_LICENCE = "CC BY-NC-SA 4.0"
HUMAN_SOURCE = "J. C. Peterson et al., Human Uncertainty Makes Classification More Robust, 2019"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, eq=False)
class ClassVectors:
    """Images as vectors.

    Attributes:
        features: ``(n, d)``.
        labels: int64 ``(n,)``, positions in ``classes``.
        classes: their names.
        text: vectors of the names ``(classes, d')``; None where there are none.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    text: Tensor | None
    sha256: str


def load_class_vectors(folder: Path, title: str) -> ClassVectors:
    """The stored vectors of a data set, one of ``PLACES``.

    Raises:
        UserError: the file is missing or broken, or its arrays do not fit each other.
    """
    path = folder / PLACES[title]
    names_key = "classes" if title == "CIFAR-10" else "name"
    features, labels, names, text = read_arrays(path, "feat", "label", names_key, "minilm")
    count = len(names)
    if features.ndim != 2 or labels.shape != features.shape[:1] or text.ndim != 2 or len(text) != count:
        raise UserError(
            f"the arrays of {path} do not fit: feat {features.shape} and label {labels.shape} should be (n, d) and "
            f"(n,), {names_key} {names.shape} and minilm {text.shape} one a class"
        )
    if set(labels.tolist()) != set(range(count)):
        raise UserError(f"the labels of {path} must be 0 … {count - 1}, each given to one image at least")
    if not (np.isfinite(features).all() and np.isfinite(text).all()):
        raise UserError(f"{path} holds vectors that are not finite")
    return ClassVectors(
        torch.from_numpy(features.astype(np.float64)),
        torch.from_numpy(labels.astype(np.int64)),
        tuple(map(str, names)),
        torch.from_numpy(text.astype(np.float64)),
        content_hash(features, labels, names.astype(str).tolist(), text),
    )


def load_human_answers(folder: Path) -> ClassVectors:
    """CIFAR-10H: an image is the distribution of people's answers to it; its class is the answer given most.

    That the official labels are not needed costs little: people agree with 99 % of them.

    Raises:
        UserError: the file is missing, broken, or not 10,000 distributions over ten classes.
    """
    path = existing(folder / HUMAN, "CIFAR-10H")
    stored = read_array(path, "a whole .npy file of numbers is expected")
    if stored.shape != (10_000, 10) or stored.dtype.kind not in "fiu" or not np.allclose(stored.sum(1), 1, atol=1e-3):
        raise UserError(f"{path} has {stored.dtype} {stored.shape}: 10,000 distributions over ten classes are expected")
    answers = torch.from_numpy(stored.astype(np.float64))
    return ClassVectors(answers, answers.argmax(1), CIFAR10, None, content_hash(answers.numpy()))
