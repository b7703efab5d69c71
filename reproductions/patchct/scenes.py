"""The embedded tier of PatchCT: which digits a scene shows, learned from scratch by every method and seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from reproductions.datasets.scenes import SIDE, Scenes, compose_scenes
from reproductions.experiment import Advance, Options
from reproductions.multi_label.in_memory import Descent, side_by_side
from reproductions.multi_label.localisation import coverage, mass_inside
from reproductions.multi_label.tokens import SceneEncoder
from reproductions.patchct.method import PatchCT, Settings
from reproductions.patchct.transport import Transport
from reproductions.storage import content_hash, source_hash

TITLE = "scenes of digits"
SEEDS = 5
COUNTS = {"train": 2500, "test": 1000}
WIDTH = 48
DESCENT = Descent(epochs=4)
TEMPERATURE = 0.1  # of the similarity weights, the same for every method

NONE, CT = Transport(kind="none"), Transport(weight=0.3)
METHODS = {
    "global pooling": Settings(transport=NONE),
    "max pooling": Settings(transport=NONE, readout="max"),
    "cross-attention": Settings(transport=NONE, readout="cross-attention"),
    "OT": Settings(transport=replace(CT, kind="ot")),
    "CT": Settings(transport=CT),
    "CT, forward only": Settings(transport=replace(CT, rho=1.0)),
    "CT, backward only": Settings(transport=replace(CT, rho=0.0)),
}
"""What stands on equal footing: one encoder, one loss, one training."""

SWITCHES = {
    "label set: all": Settings(transport=replace(CT, label_set="all")),
    "label set: predicted": Settings(transport=replace(CT, label_set="predicted")),
    "both layers": Settings(transport=replace(CT, layers=(0, 1))),
    "λ = 3": Settings(transport=replace(CT, weight=3.0)),
    "no adaptive layer": Settings(transport=CT, adaptive=False),
    "asymmetric loss": Settings(transport=CT, loss="asl"),
}
"""The questions that the paper leaves open, one change to CT each."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a trained model makes of the test scenes.

    Attributes:
        scores: ``(n, C)``.
        own: percent of each label's own weights inside its boxes ``(n, C)``, NaN for labels that are not there.
        similarity: the same of the softmax of the similarities.
        model: with the trained weights.
    """

    scores: Tensor
    own: Tensor
    similarity: Tensor
    model: PatchCT


@cache
def scenes(split: str, seed: int) -> Scenes:
    """The scenes of one seed."""
    return compose_scenes(split, COUNTS[split], seed)


def prepare(options: Options, advance: Advance) -> None:
    """Train every model that is not yet cached."""
    tasks = {
        f"{name}, seed {seed}": partial(outcome, settings, seed, options)
        for seed in range(options.seed, options.seed + SEEDS)
        for name, settings in (METHODS | SWITCHES).items()
    }
    side_by_side(tasks, advance)


def outcome(settings: Settings, seed: int, options: Options) -> Outcome:
    """Train from scratch on the seed's training scenes and look at its test scenes, or read both from the cache."""
    torch.manual_seed(seed)
    model = PatchCT(SceneEncoder(1, WIDTH), torch.randn(10, WIDTH), settings)
    key = content_hash(asdict(settings), asdict(DESCENT), COUNTS, seed, source_hash(), torch.__version__)

    def made() -> dict[str, Tensor]:
        train = scenes("train", seed)
        images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels).float()
        DESCENT.train(model, images, labels, seed, options.cache.path("patchct", key, ".part"))
        return {f"model.{name}": x for name, x in model.state_dict().items()} | _tested(model, seed)

    found = options.cache.tensors("patchct", key, made)
    model.load_state_dict({k.removeprefix("model."): x for k, x in found.items() if k.startswith("model.")})
    return Outcome(found["scores"], found["own"], found["similarity"], model.eval())


def _tested(model: PatchCT, seed: int) -> dict[str, Tensor]:
    test = scenes("test", seed)
    images = torch.from_numpy(test.images)
    covered = coverage(test.boxes, test.objects, len(test.classes), SIDE, SIDE // SceneEncoder.STRIDE)
    return {
        "scores": model.scores(images),
        "own": mass_inside(model.weights(images), covered),
        "similarity": mass_inside(model.similarity_weights(images, TEMPERATURE), covered),
    }
