"""Optimisers whose parameters are chosen by name, and the schedules of their learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from reproductions import UserError
from reproductions.multi_label.configuration import AdamW as AdamWSettings
from reproductions.multi_label.configuration import Group, OneCycle, Sgd, WarmupCosine


def make_optimizers(model: nn.Module, settings: Sequence[AdamWSettings | Sgd]) -> list[Optimizer]:
    """One optimiser for each of the settings; every parameter that is not frozen is in exactly one of their groups.

    Raises:
        UserError: a parameter is in no group or in two, or a pattern is of no parameter that is not frozen.
    """
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    chosen = [name for one in settings for group in one.groups for name in _names(group, trained)]
    for name in trained:
        if (count := chosen.count(name)) != 1:
            raise UserError(
                f"the parameter {name} has to be in one group of the optimisers, but {count or 'none'} of them"
                f" {'take' if count else 'takes'} it: change their patterns or freeze it"
            )
    return [_optimizer(one, trained) for one in settings]


def _names(group: Group, trained: dict[str, nn.Parameter]) -> list[str]:
    for pattern in group.parameters:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise UserError(f"the optimisers' pattern {pattern!r} is of no parameter that is trained: correct it")
    return [name for name in trained if any(fnmatchcase(name, pattern) for pattern in group.parameters)]


def _optimizer(settings: AdamWSettings | Sgd, trained: dict[str, nn.Parameter]) -> Optimizer:
    groups: list[dict[str, Any]] = [
        {
            "params": [trained[name] for name in _names(group, trained)],
            "lr": group.lr,
            "weight_decay": group.weight_decay,
        }
        for group in settings.groups
    ]
    return SGD(groups, momentum=settings.momentum) if isinstance(settings, Sgd) else AdamW(groups)


def make_schedule(optimizer: Optimizer, settings: WarmupCosine | OneCycle, steps: int) -> LRScheduler:
    """The schedule of an optimiser's learning rates: by epoch, or by step for ``OneCycle``.

    Args:
        optimizer: its groups have the rates that the schedule refers to.
        settings: the schedule.
        steps: of the whole training.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if isinstance(settings, OneCycle):
        return OneCycleLR(optimizer, rates, total_steps=steps, pct_start=settings.rising, cycle_momentum=False)
    return LambdaLR(optimizer, [_factor(settings, lr) for lr in rates])


def _factor(settings: WarmupCosine, lr: float) -> Callable[[int], float]:
    """What torch asks for: by finished epochs, and to multiply the group's own rate with."""
    return lambda done: warmup_cosine(settings, lr, done + 1) / lr


def warmup_cosine(settings: WarmupCosine, lr: float, epoch: int) -> float:
    """The learning rate in an epoch, from 1, of a group whose own is ``lr``."""
    if epoch < settings.warmup:
        return settings.start + (lr - settings.start) * epoch / settings.warmup
    return settings.end + (lr - settings.end) * (1 + math.cos(math.pi * epoch / settings.period)) / 2
