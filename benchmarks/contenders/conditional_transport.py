"""Conditional transport: every contender takes C, a, b to the losses L_CT (batch,) with s = −C and ρ = 1/2.

The task is ``temperature`` (τ). A gradient is that of Σ L_CT to C, through cost and navigators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.contenders import Call, Contender, Instance
from solvers import TransportProblem

Losses = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _by_solver(C: Tensor, a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The solver behind the interface: a plan, checked, as well as its cost."""
    solver = common.ours("conditional_transport", temperature=temperature)
    return common.solved(solver.solve(TransportProblem(C, a, b))).value


def _by_loss(C: Tensor, a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The function for training loops."""
    from solvers.conditional_transport import conditional_transport  # asv measures commits that have none, too

    return conditional_transport(-C, C, a, b, temperature=temperature).loss


def _plain(C: Tensor, a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The two softmaxes that papers write."""
    s = -C / temperature
    forward = torch.softmax(s + b.log()[:, None, :], -1)
    backward = torch.softmax(s + a.log()[:, :, None], -2)
    L_f = (a * (forward * C).sum(-1)).sum(-1)
    L_b = (b * (backward * C).sum(-2)).sum(-1)
    return (L_f + L_b) / 2


def _forward(losses: Losses) -> Callable[..., Call]:
    def make(instance: Instance, temperature: float) -> Call:
        C, a, b = instance.tensors()
        return lambda: losses(C, a, b, temperature)

    return make


def _gradient(losses: Losses) -> Callable[..., Call]:
    def make(instance: Instance, temperature: float) -> Call:
        cost, a, b = instance.tensors()
        C = cost.requires_grad_()
        return lambda: torch.autograd.grad(losses(C, a, b, temperature).sum(), C)[0]

    return make


BOTH = ("cpu", "cuda")
LOSSES = {
    "conditional_transport": (_by_solver, "matchmark", "plan and loss"),
    "conditional_transport_loss": (_by_loss, "matchmark", "loss"),
    "torch": (_plain, "torch", "loss"),
}
SOLVERS = {name: Contender(_forward(f), library, kind, BOTH) for name, (f, library, kind) in LOSSES.items()}
GRADIENTS = {name: Contender(_gradient(f), library, kind, BOTH) for name, (f, library, kind) in LOSSES.items()}

LEFT_OUT = {"other libraries": "none solves this problem; the papers write the two softmaxes, which are listed"}
