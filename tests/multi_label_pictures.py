"""Small pictures, a small model and small settings that train in a moment, also in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from reproductions import UserError
from reproductions.machine import Machine, open_machine
from reproductions.multi_label.checkpoints import load_weights
from reproductions.multi_label.configuration import Configuration
from reproductions.multi_label.evaluation import scores
from reproductions.multi_label.training import train

HERE = Machine()
SIDE, LABELS = 16, 3


@dataclass(frozen=True, eq=False)
class Pictures:
    """Noise whose red, green or blue is bright where the label of that colour is present."""

    count: int = 22
    title: str = "pictures"
    split: str = "train"
    sha256: str = "of these pictures"
    broken: int | None = None
    targets: np.ndarray = field(init=False)

    def __post_init__(self):
        targets = np.random.default_rng(0).integers(0, 2, (self.count, LABELS)).astype(np.int8)
        targets[0, 0] = -1
        object.__setattr__(self, "targets", targets)

    def __len__(self):
        return self.count

    def load(self, i):
        if i == self.broken:
            raise UserError(f"{i}.jpg is truncated or broken: put a whole image there")
        noise = np.random.default_rng(i).integers(0, 120, (20, 24, 3))
        return Image.fromarray((noise + 100 * (self.targets[i] == 1)).astype(np.uint8))


class Model(nn.Module):
    """A frozen stem, a head, and a temperature; the loss is a mean over the images."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.dropout = dropout
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, LABELS)
        self.log_tau = nn.Parameter(torch.zeros(()))
        self.stem.requires_grad_(False)

    def scores(self, images):
        pooled = self.stem(images).relu().mean((-2, -1))
        return self.head(F.dropout(pooled, self.dropout, self.training)) / self.log_tau.exp()

    def loss(self, images, targets):
        losses = F.binary_cross_entropy_with_logits(self.scores(images), (targets == 1).float(), reduction="none")
        return torch.where(targets < 0, 0, losses).sum() / len(images)


def configuration(**changes):
    training = {
        "seed": 3,
        "side": SIDE,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "augmentation": "pad_crop_erase",
        "epochs": 2,
        "batch": 4,
        "test_batch": 5,
        "ema": 0.8,
        "amp": False,
        "schedule": {"kind": "one_cycle", "rising": 0.3},
        "optimizers": [
            {"kind": "adamw", "groups": [{"parameters": ["log_*"], "lr": 1e-3}]},
            {"kind": "sgd", "momentum": 0.9, "groups": [{"parameters": ["head.*"], "lr": 0.1, "weight_decay": 1e-4}]},
        ],
    }
    content = {"backbone": "none", "model": {}, "training": training | changes}
    return Configuration[dict[str, Any]].model_validate(content)


def loaded(path, which="average"):
    model = Model()
    load_weights(path, model, which)
    return model.state_dict()


def trained(folder, images=None, machine=HERE, model=None, on_epoch=lambda epoch: None, **changes):
    path = folder / "weights.safetensors"
    images = Pictures() if images is None else images
    train(Model() if model is None else model, images, configuration(**changes), path, machine, on_epoch)
    return {f"{which}.{name}": x for which in ("last", "average") for name, x in loaded(path, which).items()}


def two_processes(folder):
    """What each of the processes that torchrun would start does: train, and score splits of even and odd size."""
    with open_machine() as machine:
        weights = trained(folder, machine=machine)
        model = Model()
        load_weights(folder / "weights.safetensors", model)
        found = [scores(model, Pictures(n), configuration().training, machine) for n in (22, 21)]
        torch.save([machine.count, weights, found], folder / f"{machine.rank}.pt")
