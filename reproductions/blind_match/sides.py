"""The two sides of a set of classes: image vectors that are averaged class by class, or one vector a class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from reproductions.blind_match.instances import Instance
from reproductions.blind_match.sampling import vision_prototypes
from reproductions.datasets.class_vectors import HUMAN, PLACES, load_class_vectors, load_human_answers
from reproductions.storage import content_hash


@dataclass(frozen=True, eq=False)
class Side:
    """One way to see the classes.

    Attributes:
        title: as tables name it.
        vectors: of the images ``(images, d)``, or one a class ``(classes, d)``.
        labels: the class of every image; None where there is one vector a class.
    """

    title: str
    vectors: Tensor
    labels: Tensor | None = None

    def prototypes(self, classes: int, local_seed: int | None) -> Tensor:
        """One vector of length 1 a class, of the half of the images that the seed looks at; all without a seed."""
        if self.labels is None:
            return F.normalize(self.vectors.double(), dim=-1)
        return vision_prototypes(self.vectors, self.labels, classes, local_seed)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sides of the same classes.

    Attributes:
        name: short, for settings.
        data: the data set, as tables name it.
    """

    name: str
    data: str
    x: Side
    y: Side
    classes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.x.title} ↔ {self.y.title}"

    @property
    def sha256(self) -> str:
        """Hash of both sides."""
        arrays = [a.numpy() for side in (self.x, self.y) for a in (side.vectors, side.labels) if a is not None]
        return content_hash(*arrays, list(self.classes))

    def instance(self, local_seed: int | None = None) -> Instance:
        """All classes, with the prototypes that a seed sees."""
        return Instance(*(side.prototypes(len(self.classes), local_seed) for side in (self.x, self.y)))


@cache
def stored_pairs(folder: Path | None) -> dict[str, Pair]:
    """The pairs of sides that a folder of stored vectors holds: human answers, MobileNetV2 and MiniLM."""
    found: dict[str, Pair] = {}
    if folder is None:
        return found
    if (folder / PLACES["CIFAR-10"]).exists():
        stored = load_class_vectors(folder, "CIFAR-10")
        network = Side("MobileNetV2", stored.features, stored.labels)
        assert stored.text is not None
        language = Side("MiniLM", stored.text)
        sides = {"network_language": (network, language)}
        if (folder / HUMAN).exists():
            answers = load_human_answers(folder)
            people = Side("human answers", answers.features, answers.labels)
            sides |= {"people_network": (people, network), "people_language": (people, language)}
        for name, (x, y) in sides.items():
            found[name] = Pair(name, "CIFAR-10", x, y, stored.classes)
    if (folder / PLACES["Tiny-ImageNet"]).exists():
        stored = load_class_vectors(folder, "Tiny-ImageNet")
        assert stored.text is not None
        for name, count in (("tiny_imagenet_100", 100), ("tiny_imagenet_200", len(stored.classes))):
            chosen = stored.labels < count
            network = Side("MobileNetV2", stored.features[chosen], stored.labels[chosen])
            language = Side("MiniLM", stored.text[:count])
            title = f"Tiny-ImageNet, {count} classes"
            found[name] = Pair(name, title, network, language, stored.classes[:count])
    return found
