"""Training on data that fits in memory: the small models of the embedded tier and of stored features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from reproductions.training import Training


@dataclass(frozen=True, kw_only=True)
class Descent:
    """AdamW under one cycle of the learning rate, whose peak is ``lr``."""

    epochs: int
    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 1e-2

    def train(self, model: nn.Module, inputs: Tensor, targets: Tensor, seed: int, state: Path) -> None:
        """Train what of the model is not frozen; every epoch is shuffled anew, and a killed training goes on.

        Args:
            model: with a method ``loss(inputs, targets)``; it is left in evaluation mode.
            inputs: ``(n, …)``.
            targets: ``(n, C)``.
            seed: of the shuffling.
            state: the file of the unfinished training; it is removed at the end.
        """
        free = [p for p in model.parameters() if p.requires_grad]
        optimizer = AdamW(free, self.lr, weight_decay=self.weight_decay)
        steps = -(-len(inputs) // self.batch)
        schedule = OneCycleLR(optimizer, self.lr, total_steps=self.epochs * steps)

        def losses(epoch: int, start: int) -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed(1000 * seed + epoch)
            for index in torch.randperm(len(inputs), generator=generator).split(self.batch)[start:]:
                yield model.loss(inputs[index], targets[index])  # type: ignore[operator]

        Training(model, (optimizer,), losses, self.epochs, state, step_schedules=(schedule,)).run(lambda epoch: None)
        model.eval()
        state.unlink(missing_ok=True)


def side_by_side(tasks: Mapping[str, Callable[[], Any]], advance: Callable[[str, float], None]) -> None:
    """Run tasks in as many processes as torch has threads here, one thread each; what they return is dropped.

    Small models gain nothing from several threads. ``advance`` is told of each that is done.
    """
    count = torch.get_num_threads()
    if count == 1 or len(tasks) <= 1:
        done: Iterable[str] = (_named(name, task) for name, task in tasks.items())
    else:
        calls = (joblib.delayed(_alone)(name, task) for name, task in tasks.items())
        done = joblib.Parallel(n_jobs=min(count, len(tasks)), return_as="generator_unordered")(calls)
    for k, name in enumerate(done, start=1):
        advance(f"trained {k} of {len(tasks)} models: {name}", k / len(tasks))


def _named(name: str, task: Callable[[], Any]) -> str:
    task()
    return name


def _alone(name: str, task: Callable[[], Any]) -> str:
    torch.set_num_threads(1)
    return _named(name, task)
