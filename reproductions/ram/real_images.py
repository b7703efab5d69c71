"""RAM's matchings on small real data: COCO-256 and Corel5k.

On COCO-256 the projection to the space of CLIP's text vectors is trained on the seen classes alone; on Corel5k the
vectors of tokens and of words are trained together. There is no frozen image tower here, so no teacher either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reproductions.experiment import Options
from reproductions.multi_label.localisation import mass_inside
from reproductions.multi_label.real_images import Study
from reproductions.ram.kcot import Kcot
from reproductions.ram.region_model import RegionModel
from reproductions.ram.settings import RamSettings
from reproductions.storage import content_hash, source_hash

METHODS = {"pooling": "pooling", "max": "max", "attention": "attention", "OT": "ot", "CT": "ct", "KCOT": "kcot"}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method makes of the test images: scores per setting, and percent of the plan inside the boxes, or None."""

    scores: dict[str, Tensor]
    inside: Tensor | None


def settings_of(study: Study, method: str) -> RamSettings:
    """RAM's matching without teacher and adapter, temperatures to start from by the number of labels."""
    tau = 1 / (study.kappa * study.targets("train").shape[1])
    return RamSettings(
        matching=METHODS[method],  # type: ignore[arg-type]
        teacher=False,
        adapter=False,
        tau_local=tau,
        kcot=Kcot(tolerance=1e-4),
    )


def outcome(study: Study, method: str, seed: int, options: Options) -> Outcome:
    """Train on the seen labels of the training images and score the test images, or read the scores from the cache."""
    settings = settings_of(study, method)
    key = content_hash(study.sha256, asdict(settings), asdict(study.descent), seed, source_hash(), torch.__version__)

    def made() -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = RegionModel(study.encoder(), study.text(), study.seen, settings, study.kappa)
        targets = torch.from_numpy(study.targets("train")[:, : study.seen]).float()
        there = targets.sum(1) > 0
        part = options.cache.path("ram", key, ".part")
        study.descent.train(model, study.inputs("train")[there], targets[there], seed, part)
        test = study.inputs("test")
        found = {f"scores.{name}": model.scores(test, which) for name, which in study.candidates.items()}
        if (covered := study.covered()) is not None:
            found["inside"] = mass_inside(model.weights(test), covered)
        return found

    found = options.cache.tensors("ram", key, made)
    return Outcome({name: found[f"scores.{name}"] for name in study.candidates}, found.get("inside"))
