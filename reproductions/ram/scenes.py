"""The embedded tier of RAM: coloured digits in scenes, learned on some pairs of a colour and a digit, tested on all.

An encoder is trained from scratch on scenes of seen pairs by its global feature alone, and frozen: it stands for CLIP.
On top of it every method is trained on the same scenes, and ranks the unseen pairs (ZSL) or all of them (GZSL).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.datasets.scenes import COLOURS, SIDE, Scenes, compose_scenes, scene_classes
from reproductions.experiment import Advance, Options
from reproductions.multi_label.in_memory import Descent, side_by_side
from reproductions.multi_label.localisation import coverage, mass_inside
from reproductions.multi_label.tokens import SceneEncoder, Tokens
from reproductions.ram.kcot import Kcot
from reproductions.ram.mmc_loss import mmc_loss
from reproductions.ram.region_model import RegionModel
from reproductions.ram.settings import RamSettings
from reproductions.storage import content_hash, source_hash

TITLE = "scenes of coloured digits"
SEEDS = 5
COUNTS = {"train": 2500, "test": 1000}
WIDTH = 48
KAPPA = 20.0
PRETRAINING, TRAINING = Descent(epochs=12), Descent(epochs=2, lr=2e-3)

UNSEEN = tuple(10 * (digit % len(COLOURS)) + digit for digit in range(10))
"""One colour of each digit."""
SEEN = tuple(c for c in range(10 * len(COLOURS)) if c not in UNSEEN)
ORDER = SEEN + UNSEEN
"""The columns of scores: seen labels first, as in RAM."""
CANDIDATES = {"ZSL": slice(len(SEEN), None), "GZSL": slice(None)}


def _settings(matching: str, teacher: bool = False, adapter: bool = True) -> RamSettings:
    return RamSettings(
        matching=matching,  # type: ignore[arg-type]
        teacher=teacher,
        adapter=adapter,
        tau_local=1 / (KAPPA * len(ORDER)),
        kcot=Kcot(tolerance=1e-4),
    )


METHODS = {
    "pooling": _settings("pooling"),
    "max": _settings("max"),
    "attention": _settings("attention"),
    "CT": _settings("ct"),
    "OT": _settings("ot"),
    "OT, teacher": _settings("ot", teacher=True),
    "KCOT": _settings("kcot"),
    "KCOT, teacher (RAM)": _settings("kcot", teacher=True),
    "pooling, no adapter": _settings("pooling", adapter=False),
    "attention, no adapter": _settings("attention", adapter=False),
    "CT, no adapter": _settings("ct", adapter=False),
    "OT, no adapter": _settings("ot", adapter=False),
    "KCOT, no adapter": _settings("kcot", adapter=False),
}
"""How regions are matched to labels, with RAM's teacher and adapter on and off. Without the adapter only the two
temperatures are trained."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method makes of the test scenes, its columns in ``ORDER``.

    Attributes:
        scores: per setting, ``(n, candidates)``.
        inside: percent of each label's share of the plan inside its boxes, ``(n, C)``; NaN for labels not there.
        model: with the trained weights; it takes stored tokens, as ``tokens`` makes them.
    """

    scores: dict[str, Tensor]
    inside: Tensor
    model: RegionModel


class Stored(nn.Module):
    """Tokens that were computed once: ``(B, 1 + N, d)``, the whole image's first."""

    def forward(self, tokens: Tensor) -> Tokens:
        return Tokens(tokens[:, 0], (tokens[:, 1:],))


class Pretrained(nn.Module):
    """The encoder and the text vectors, trained by the global feature alone: L(g) over the seen labels."""

    text: Tensor

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        self.encoder = SceneEncoder(len(next(iter(COLOURS.values()))), WIDTH)
        self.register_buffer("text", text)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        x = F.normalize(self.encoder(images).whole, dim=-1)
        return mmc_loss(KAPPA * x @ self.text[: len(SEEN)].mT, targets)


@cache
def scenes(split: str, seed: int) -> Scenes:
    """Training scenes of seen pairs alone, test scenes of all."""
    allowed = SEEN if split == "train" else None
    return compose_scenes(split, COUNTS[split], seed, colours=True, allowed=allowed)


def labels(split: str, seed: int) -> np.ndarray:
    """Bool ``(n, C)``, columns in ``ORDER``."""
    return scenes(split, seed).labels[:, ORDER]


def text_vectors(seed: int) -> Tensor:
    """Unit vectors of the labels ``(C, d)`` in ``ORDER``: half of a vector is the colour's, the other half the digit's.

    Colours are orthogonal to each other, and so are digits.
    """
    generator = torch.Generator().manual_seed(seed)
    half = WIDTH // 2
    colours, digits = (
        torch.linalg.qr(torch.randn(half, count, generator=generator))[0].T for count in (len(COLOURS), 10)
    )
    pairs = [torch.cat([colours[c // 10], digits[c % 10]]) for c in ORDER]
    return F.normalize(torch.stack(pairs), dim=-1)


def prepare(options: Options, advance: Advance) -> None:
    """Train every encoder and every method that is not yet cached."""
    seeds = range(options.seed, options.seed + SEEDS)
    side_by_side({f"encoder, seed {s}": partial(tokens, s, options) for s in seeds}, advance)
    side_by_side(
        {
            f"{name}, seed {s}": partial(outcome, settings, s, options)
            for s in seeds
            for name, settings in METHODS.items()
        },
        advance,
    )


def tokens(seed: int, options: Options) -> dict[str, Tensor]:
    """Tokens of the frozen encoder, ``(n, 1 + N, d)`` for "train" and "test"."""
    key = _key("tokens", seed)

    def made() -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = Pretrained(text_vectors(seed))
        images, targets = torch.from_numpy(scenes("train", seed).images), labels("train", seed)[:, : len(SEEN)]
        part = options.cache.path("ram", key, ".part")
        PRETRAINING.train(model, images, torch.from_numpy(targets).float(), seed, part)
        with torch.no_grad():
            found = {split: model.encoder(torch.from_numpy(scenes(split, seed).images)) for split in COUNTS}
        return {split: torch.cat([t.whole[:, None], t.layers[-1]], 1) for split, t in found.items()}

    return options.cache.tensors("ram", key, made)


def outcome(settings: RamSettings, seed: int, options: Options) -> Outcome:
    """Train a method on the seed's frozen encoder and look at the test scenes, or read both from the cache."""
    torch.manual_seed(seed)
    model = RegionModel(Stored(), text_vectors(seed), len(SEEN), settings, KAPPA)
    key = _key("method", seed, asdict(settings))

    def made() -> dict[str, Tensor]:
        stored, targets = tokens(seed, options), torch.from_numpy(labels("train", seed)[:, : len(SEEN)]).float()
        TRAINING.train(model, stored["train"], targets, seed, options.cache.path("ram", key, ".part"))
        test = scenes("test", seed)
        covered = coverage(test.boxes, test.objects, len(ORDER), SIDE, SIDE // SceneEncoder.STRIDE)[..., ORDER]
        return {
            **{f"model.{name}": x for name, x in model.state_dict().items()},
            **{f"scores.{name}": model.scores(stored["test"], which) for name, which in CANDIDATES.items()},
            "inside": mass_inside(model.weights(stored["test"]), covered),
        }

    found = options.cache.tensors("ram", key, made)
    model.load_state_dict({k.removeprefix("model."): x for k, x in found.items() if k.startswith("model.")})
    return Outcome({name: found[f"scores.{name}"] for name in CANDIDATES}, found["inside"], model.eval())


def _key(*parts: object) -> str:
    settings = asdict(PRETRAINING), asdict(TRAINING), COUNTS, scene_classes(True)
    return content_hash(list(parts), list(settings), source_hash(), torch.__version__)
