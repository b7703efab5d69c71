"""PatchCT's methods on small real data, where all classes are seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reproductions.experiment import Options
from reproductions.multi_label.localisation import mass_inside
from reproductions.multi_label.real_images import Study
from reproductions.patchct.method import PatchCT, Settings
from reproductions.storage import content_hash, source_hash


@dataclass(frozen=True, eq=False)
class Outcome:
    """Scores of the test images ``(n, C)``, and percent of each label's own weights inside its boxes, or None."""

    scores: Tensor
    own: Tensor | None


def outcome(study: Study, settings: Settings, seed: int, options: Options) -> Outcome:
    """Train on all labels of the training images and score the test images, or read the scores from the cache."""
    key = content_hash(study.sha256, asdict(settings), asdict(study.descent), seed, source_hash(), torch.__version__)

    def made() -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = PatchCT(study.encoder(), study.text().detach(), settings)
        part = options.cache.path("patchct", key, ".part")
        study.descent.train(model, study.inputs("train"), torch.from_numpy(study.targets("train")), seed, part)
        test = study.inputs("test")
        found = {"scores": model.scores(test)}
        if (covered := study.covered()) is not None:
            found["own"] = mass_inside(model.weights(test), covered)
        return found

    found = options.cache.tensors("patchct", key, made)
    return Outcome(found["scores"], found.get("own"))
