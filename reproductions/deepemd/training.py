"""The training loop that pre-training and meta-training share: it can be killed at any time and goes on."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from reproductions import UserError
from reproductions.deepemd.machine import Machine
from reproductions.storage import write_atomically


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: its number from 1, the mean loss, and the accuracy in percent where one was measured."""

    number: int
    loss: float
    accuracy: float | None


OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Settings of stochastic gradient descent."""

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FileDescent(Descent):
    """What both trainings from files set, to the paper's values.

    Attributes:
        step: epochs after which the learning rate falls by ``gamma``.
        validation: 1-shot episodes of ``way`` classes and ``queries`` images a class that choose the epoch.
        amp: mixed precision of the encoder; CUDA only.
    """

    step: int
    gamma: float
    validation: int
    way: int = 5
    queries: int = 15
    amp: bool = False


def nesterov(model: nn.Module, settings: Descent) -> SGD:
    """Stochastic gradient descent with Nesterov's momentum."""
    return SGD(
        model.parameters(),
        settings.lr,
        momentum=settings.momentum,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )


@dataclass(frozen=True, eq=False)
class Selection:
    """The epoch of the highest accuracy is kept, and written at the end: what is not finished is never tested.

    Attributes:
        module: the part of the model that is kept.
        accuracy: measures it.
        write: writes its weights.
    """

    module: nn.Module
    accuracy: Callable[[], float]
    write: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Training:
    """A model, how it is trained, and the file of the state from which a killed training goes on.

    Attributes:
        losses: the losses of an epoch, one a step; each is asked for when the step before it is done.
        state: names a file of this very training, of no other settings or data.
        selection: None keeps the last epoch.
        amp: the losses come out of mixed precision and are scaled before they go back.
    """

    model: nn.Module
    optimizer: SGD
    schedule: LRScheduler
    losses: Callable[[int], Iterable[Tensor]]
    epochs: int
    state: Path
    selection: Selection | None = None
    amp: bool = False
    machine: Machine = field(default_factory=Machine)

    def run(self, on_epoch: OnEpoch) -> None:
        """Train from the last finished epoch on; the model ends with the weights that are kept."""
        scaler = torch.amp.GradScaler(self.machine.device.type, enabled=self.amp)
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": scaler,
        }
        start, best = self._restore(parts)
        for epoch in range(start, self.epochs):
            self.model.train()
            losses = []
            for loss in self.losses(epoch):
                self.optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(self.optimizer)
                scaler.update()
                losses.append(loss.detach())
            self.schedule.step()
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise UserError(f"the loss is {mean} in epoch {epoch + 1}: the training diverges with these settings")
            if self.machine.first:
                accuracy = self._select(best)
                self._save({"epoch": epoch + 1, "best": best, **{name: x.state_dict() for name, x in parts.items()}})
                on_epoch(Epoch(epoch + 1, mean, accuracy))
        if self.selection is not None and self.machine.first:
            self.selection.module.load_state_dict(best["weights"])
            self.selection.write()
        self.machine.wait()

    def _select(self, best: dict[str, Any]) -> float | None:
        """The accuracy; where it is the highest so far the weights enter ``best``."""
        if self.selection is None:
            return None
        accuracy = self.selection.accuracy()
        if accuracy > best.get("accuracy", -math.inf):
            weights = {name: x.detach().cpu().clone() for name, x in self.selection.module.state_dict().items()}
            best.update(accuracy=accuracy, weights=weights)
        return accuracy

    def _save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.state, buffer.getvalue())

    def _restore(self, parts: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The epoch to go on with and the best so far; from the start without a readable state."""
        try:
            state = torch.load(self.state, weights_only=True, map_location="cpu")
        except (FileNotFoundError, RuntimeError, EOFError, pickle.UnpicklingError):
            return 0, {}
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["epoch"]), state["best"]
