"""The training loop that the papers share: it can be killed at any time and goes on."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from reproductions import UserError
from reproductions.machine import Machine
from reproductions.storage import write_atomically


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: its number from 1, the mean loss, and the accuracy in percent where one was measured."""

    number: int
    loss: float
    accuracy: float | None


OnEpoch = Callable[[Epoch], None]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training may change: the parameters that are not frozen, and the buffers."""
    frozen = {name for name, x in model.named_parameters() if not x.requires_grad}
    return {name: x for name, x in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what ``trained_state`` gave; what is frozen stays.

    Raises:
        RuntimeError: names or shapes are not those of this model.
    """
    trained = trained_state(model)
    model.load_state_dict({name: x for name, x in model.state_dict().items() if name not in trained} | state)


class Average:
    """Exponential moving average of a model over all steps, θ̄ ← d θ̄ + (1 − d) θ, from its initial weights on.

    Parameters and buffers are averaged alike; counters, which are no fractions, are copied.

    Attributes:
        module: the averaged model; it shares what is frozen with the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model, {id(x): x for x in model.parameters() if not x.requires_grad}).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        own = trained_state(self.module)
        for name, x in trained_state(model).items():
            if x.is_floating_point():
                own[name].lerp_(x, 1 - self.decay)
            else:
                own[name].copy_(x)


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
        losses: the losses of an epoch from one of its steps on (both from 0); each is asked for when the step before
            it is done, and depends on no random numbers drawn before.
        state: names a file of this very training, of no other settings or data.
        schedules: of the learning rates, by the epoch.
        step_schedules: of the learning rates, by the step.
        average: follows the model from step to step.
        clip: the largest norm of all gradients together.
        selection: None keeps the last epoch.
        amp: the losses come out of mixed precision and are scaled before they go back.
        every: steps after which the state is written inside an epoch too.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    losses: Callable[[int, int], Iterable[Tensor]]
    epochs: int
    state: Path
    schedules: Sequence[LRScheduler] = ()
    step_schedules: Sequence[LRScheduler] = ()
    average: Average | None = None
    clip: float | None = None
    selection: Selection | None = None
    amp: bool = False
    every: int | None = None
    machine: Machine = field(default_factory=Machine)

    def run(self, on_epoch: OnEpoch) -> None:
        """Train from the last written state on; the model ends with the weights that are kept.

        Raises:
            UserError: the loss is no longer finite; no state of that is written.
        """
        scaler = torch.amp.GradScaler(self.machine.device.type, enabled=self.amp)
        start, losses, best = self._restore(scaler)
        for epoch in range(start, self.epochs):
            self.model.train()
            for loss in self.losses(epoch, len(losses)):
                self._step(loss, scaler)
                losses.append(loss.detach())
                if self.every is not None and len(losses) % self.every == 0:
                    _mean(losses, epoch)
                    self._save(scaler, epoch, losses, best)
            with warnings.catch_warnings():  # killed after the last step of an epoch, one goes on with this
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                for schedule in self.schedules:
                    schedule.step()
            mean, losses = _mean(losses, epoch), []
            if self.machine.first:
                accuracy = self._select(best)
                self._save(scaler, epoch + 1, losses, best)
                on_epoch(Epoch(epoch + 1, mean, accuracy))
        if self.selection is not None and self.machine.first:
            self.selection.module.load_state_dict(best["weights"])
            self.selection.write()
        self.machine.wait()

    def _step(self, loss: Tensor, scaler: torch.amp.GradScaler) -> None:
        if loss.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"a loss has to be computed in full precision, but this one is {loss.dtype}")
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        if self.clip is not None:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer)
            groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
            nn.utils.clip_grad_norm_([x for group in groups for x in group["params"]], self.clip)
        scale = scaler.get_scale()
        for optimizer in self.optimizers:
            scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:  # scaled gradients were too large for half precision: no step was taken
            return
        for schedule in self.step_schedules:
            schedule.step()
        if self.average is not None:
            self.average.update(self.model)

    def _select(self, best: dict[str, Any]) -> float | None:
        """The accuracy; where it is the highest so far the weights enter ``best``."""
        if self.selection is None:
            return None
        accuracy = self.selection.accuracy()
        if accuracy > best.get("accuracy", -math.inf):
            weights = {name: x.detach().cpu().clone() for name, x in self.selection.module.state_dict().items()}
            best.update(accuracy=accuracy, weights=weights)
        return accuracy

    def _save(self, scaler: torch.amp.GradScaler, epoch: int, losses: list[Tensor], best: dict[str, Any]) -> None:
        """Write what going on with this epoch takes, of which these losses are known."""
        if not self.machine.first:
            return
        state = {
            "epoch": epoch,
            "losses": torch.stack(losses).cpu() if losses else torch.empty(0),
            "best": best,
            "model": trained_state(self.model),
            "average": None if self.average is None else trained_state(self.average.module),
            "parts": [part.state_dict() for part in self._parts(scaler)],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.state, buffer.getvalue())

    def _restore(self, scaler: torch.amp.GradScaler) -> tuple[int, list[Tensor], dict[str, Any]]:
        """The epoch to go on with, its known losses and the best so far; from the start without a readable state."""
        try:
            state = torch.load(self.state, weights_only=True, map_location="cpu")
        except (FileNotFoundError, RuntimeError, EOFError, pickle.UnpicklingError):
            return 0, [], {}
        load_trained_state(self.model, state["model"])
        if self.average is not None:
            load_trained_state(self.average.module, state["average"])
        for part, held in zip(self._parts(scaler), state["parts"], strict=True):
            part.load_state_dict(held)
        return state["epoch"], list(state["losses"].to(self.machine.device)), state["best"]

    def _parts(self, scaler: torch.amp.GradScaler) -> tuple[Any, ...]:
        return (*self.optimizers, *self.schedules, *self.step_schedules, scaler)


def _mean(losses: list[Tensor], epoch: int) -> float:
    mean = torch.stack(losses).mean().item()
    if not math.isfinite(mean):
        raise UserError(f"the loss is {mean} in epoch {epoch + 1}: the training diverges with these settings")
    return mean
