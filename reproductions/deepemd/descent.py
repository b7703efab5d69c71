"""The settings of DeepEMD's trainings, and their optimiser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import SGD


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
