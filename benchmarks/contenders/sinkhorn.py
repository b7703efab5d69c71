"""Sinkhorn: every contender solves min ⟨C, T⟩ + ε Σ T (log T − 1) from the same C, a, b to the plan T.

The task is ``reg`` (ε), ``iterations`` and ``tolerance``. With a tolerance, the contender stops once the marginal error
(1-norm) is at most that, or at ``iterations``; without one it makes ``iterations`` of them, each a scaling of the rows
and one of the columns. ``TOLERANCES`` are what each dtype resolves.

A gradient is that of Σ ⟨C, T(C)⟩ to C, through the plan: "implicit" from the fixed point, or "unrolled" through every
iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import ot
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.contenders import Call, Contender, Instance, one_problem
from solvers import TransportProblem

TOLERANCES = {"float32": 1e-5, "float64": 1e-6}
NEVER = 1e-300  # a tolerance met only by an error of exactly zero, where an iteration changes nothing more
SHARE = 0.95  # of the iterations asked for that a batch has to make: single problems may get there in float32
EVERY = 10  # iterations between two looks at the marginal error in the plain loops, as POT and OTT-JAX do it

Plan = Callable[..., Tensor]


# ------------------------------------------------------------------------------------------------------------ ours


def _ours(instance: Instance, reg: float, iterations: int, tolerance: float | None = None) -> Call:
    cost, a, b = instance.tensors()
    solver = common.ours("sinkhorn", reg=reg, tolerance=tolerance or NEVER, max_iterations=iterations)
    return lambda: _solution(solver, cost, a, b, tolerance).plan


def _our_gradient(instance: Instance, reg: float, iterations: int) -> Call:
    cost, a, b = instance.tensors()
    solver = common.ours("sinkhorn", reg=reg, tolerance=NEVER, max_iterations=iterations)
    C = cost.requires_grad_()
    return lambda: torch.autograd.grad(_solution(solver, C, a, b, None).value.sum(), C)[0]


def _solution(solver: Any, cost: Tensor, a: Tensor, b: Tensor, tolerance: float | None) -> Any:
    solution = solver.solve(TransportProblem(cost, a, b))
    if tolerance is not None:
        return common.solved(solution)
    if (made := solution.iterations.double().mean().item()) < SHARE * solver.max_iterations:
        raise RuntimeError(f"not {solver.max_iterations} iterations, but {made:.1f} in the mean")
    return common.solved(solution, "ITERATION_LIMIT")


# ----------------------------------------------------------------------------------------------------------- torch


def _log_loop(cost: Tensor, a: Tensor, b: Tensor, reg: float, iterations: int, tolerance: float | None) -> Tensor:
    """The loop that papers write: potentials by logsumexp."""
    M, log_a, log_b = -cost / reg, a.log(), b.log()
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    for k in range(iterations):
        row_sums = torch.logsumexp(M + v[:, None, :], -1)
        if tolerance is not None and k and k % EVERY == 0:
            errors = ((u + row_sums).exp() - a).abs().sum(-1)
            if errors.max() <= tolerance:
                break
        u = log_a - row_sums
        v = log_b - torch.logsumexp(M + u[:, :, None], -2)
    return (M + u[:, :, None] + v[:, None, :]).exp()


def _scaling_loop(cost: Tensor, a: Tensor, b: Tensor, reg: float, iterations: int, tolerance: float | None) -> Tensor:
    """The loop of Cuturi 2013: scalings of K = exp(−C/ε), which under- or overflow for small ε."""
    K = (-cost / reg).exp()
    u, v = torch.ones_like(a), torch.ones_like(b)
    for k in range(iterations):
        row_sums = (K @ v[:, :, None])[..., 0]
        if tolerance is not None and k and k % EVERY == 0:
            errors = (u * row_sums - a).abs().sum(-1)
            if errors.max() <= tolerance:
                break
        u = a / row_sums
        v = b / (u[:, None, :] @ K)[:, 0]
    return u[:, :, None] * K * v[:, None, :]


# ------------------------------------------------------------------------------------------------------------- POT


def _pot_batch(
    cost: Tensor, a: Tensor, b: Tensor, reg: float, iterations: int, tolerance: float | None, method: str
) -> Tensor:
    # It stops on the 2-norm of the row marginals. ‖x‖₁ ≤ √n ‖x‖₂, so this is the largest tolerance that keeps ours.
    tol = 0.0 if tolerance is None else tolerance / math.sqrt(cost.shape[-2])
    grad = "autodiff" if cost.requires_grad else "detach"
    return ot.solve_batch(cost, a=a, b=b, reg=reg, max_iter=iterations, tol=tol, method=method, grad=grad).plan


def _pot(cost: Any, a: Any, b: Any, reg: float, iterations: int, tolerance: float | None, method: str) -> Any:
    # As above, of the column marginals. Beyond its range it warns and returns the last finite iterate.
    stop = 0.0 if tolerance is None else tolerance / math.sqrt(cost.shape[-1])
    settings = {"method": method, "numItermax": iterations, "stopThr": stop, "warn": False}
    return ot.sinkhorn(a[0], b[0], cost[0], reg, **settings)[None]


# -------------------------------------------------------------------------------------------------------- GeomLoss


def _geomloss(instance: Instance, reg: float, iterations: int, tolerance: float | None = None) -> Call:
    if tolerance is not None:
        raise NotImplementedError("it has no stopping rule: its schedule lowers ε from the range of C in equal ratios")
    solve, (cost, a, b) = common.peer("geomloss.ot").solve_batch, instance.tensors()
    return lambda: solve(cost, a=a, b=b, reg=reg, max_iter=iterations).plan


# --------------------------------------------------------------------------------------------------------- OTT-JAX


def _ott(
    instance: Instance,
    reg: float,
    iterations: int,
    tolerance: float | None = None,
    *,
    lse: bool,
    gradient: bool = False,
) -> Call:
    """Jitted over the whole batch; compiled by the first call, which is not timed."""
    run, jax = _ott_compiled(iterations, tolerance, lse, gradient), common.peer("jax")
    double, device = instance.dtype == "float64", jax.devices("cpu")[0]
    with jax.enable_x64(double):
        arrays = [jax.device_put(x, device) for x in instance.numpy()]

    def call() -> Any:
        with jax.enable_x64(double):
            return run(*arrays, reg).block_until_ready()

    return call


@cache
def _ott_compiled(iterations: int, tolerance: float | None, lse: bool, gradient: bool) -> Callable[..., Any]:
    """(C, a, b, ε) → plans, or the gradient; compiled once for every shape and dtype."""
    jax = common.peer("jax")
    linear_problem = common.peer("ott.problems.linear.linear_problem")
    sinkhorn = common.peer("ott.solvers.linear.sinkhorn")
    geometry = common.peer("ott.geometry.geometry")
    solver = sinkhorn.Sinkhorn(
        lse_mode=lse,
        threshold=tolerance or 0.0,
        min_iterations=iterations if tolerance is None else 0,
        max_iterations=iterations,
        inner_iterations=math.gcd(iterations, EVERY),  # it rounds the iterations down to a multiple of these
    )

    def plan(C: Any, a: Any, b: Any, reg: Any) -> Any:
        problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=C, epsilon=reg), a=a, b=b)
        return solver(problem).matrix

    plans = jax.vmap(plan, in_axes=(0, 0, 0, None))
    return jax.jit(jax.grad(lambda C, a, b, reg: (C * plans(C, a, b, reg)).sum()) if gradient else plans)


# ---------------------------------------------------------------------------------------------------- the contenders


def _on_torch(plan: Plan, batched: bool = True, **fixed: Any) -> Callable[..., Call]:
    def make(instance: Instance, reg: float, iterations: int, tolerance: float | None = None) -> Call:
        if not batched:
            one_problem(instance)
        return partial(plan, *instance.tensors(), reg, iterations, tolerance, **fixed)

    return make


def _on_numpy(plan: Callable[..., Any], **fixed: Any) -> Callable[..., Call]:
    def make(instance: Instance, reg: float, iterations: int, tolerance: float | None = None) -> Call:
        one_problem(instance)
        return partial(plan, *instance.numpy(), reg, iterations, tolerance, **fixed)

    return make


def _differentiated(plan: Plan, batched: bool = True, **fixed: Any) -> Callable[..., Call]:
    """The gradient of Σ ⟨C, T(C)⟩ by torch's automatic differentiation."""

    def make(instance: Instance, reg: float, iterations: int) -> Call:
        if not batched:
            one_problem(instance)
        cost, a, b = instance.tensors()
        C = cost.requires_grad_()
        return lambda: torch.autograd.grad((C * plan(C, a, b, reg, iterations, None, **fixed)).sum(), C)[0]

    return make


BOTH = ("cpu", "cuda")
SLOW = (1000, "ten seconds and more for 100 iterations at n = 4000")
TAPE = (1000, "the tape of 100 iterations at n = 4000 takes tens of gigabytes")
log, scaling = "log", "scaling"

SOLVERS = {
    "sinkhorn": Contender(_ours, "matchmark", log, BOTH),
    "pot_batch_log": Contender(_on_torch(_pot_batch, method="log_sinkhorn"), "POT", log, BOTH),
    "pot_batch_scaling": Contender(_on_torch(_pot_batch, method="sinkhorn"), "POT", scaling),  # it starts on the CPU
    "pot_log": Contender(_on_torch(_pot, batched=False, method="sinkhorn_log"), "POT", log, BOTH),
    "pot_scaling": Contender(_on_numpy(_pot, method="sinkhorn"), "POT", scaling),
    "pot_scaling_torch": Contender(_on_torch(_pot, batched=False, method="sinkhorn"), "POT", scaling, BOTH),
    "pot_stabilized": Contender(_on_numpy(_pot, method="sinkhorn_stabilized"), "POT", "stabilised"),
    "ott_log": Contender(partial(_ott, lse=True), "ott-jax", log),
    "ott_scaling": Contender(partial(_ott, lse=False), "ott-jax", scaling, largest=SLOW),
    "geomloss": Contender(_geomloss, "geomloss", log, BOTH),
    "torch_log": Contender(_on_torch(_log_loop), "torch", log, BOTH),
    "torch_scaling": Contender(_on_torch(_scaling_loop), "torch", scaling, BOTH),
}

GRADIENTS = {
    "sinkhorn": Contender(_our_gradient, "matchmark", "implicit", BOTH),
    "pot_batch_log": Contender(_differentiated(_pot_batch, method="log_sinkhorn"), "POT", "unrolled", BOTH, TAPE),
    "pot_batch_scaling": Contender(_differentiated(_pot_batch, method="sinkhorn"), "POT", "unrolled", largest=TAPE),
    "pot_log": Contender(_differentiated(_pot, False, method="sinkhorn_log"), "POT", "unrolled", BOTH, TAPE),
    "pot_scaling_torch": Contender(_differentiated(_pot, False, method="sinkhorn"), "POT", "unrolled", BOTH, TAPE),
    "ott_log": Contender(partial(_ott, lse=True, gradient=True), "ott-jax", "implicit", largest=SLOW),
    "ott_scaling": Contender(partial(_ott, lse=False, gradient=True), "ott-jax", "implicit", largest=SLOW),
    "torch_log": Contender(_differentiated(_log_loop), "torch", "unrolled", BOTH, TAPE),
    "torch_scaling": Contender(_differentiated(_scaling_loop), "torch", "unrolled", BOTH, TAPE),
}

# What has no row at all, and why. (Single sizes a contender is not asked for stand in its ``largest``.)
LEFT_OUT = {
    "POT on NumPy in the log domain (`ot.sinkhorn`, `ot.solve_batch`)": "slower than the same formulas on torch, which "
    "are listed; half a minute for 100 iterations at n = 4000",
    "`geomloss.SamplesLoss`": "takes points instead of costs; `geomloss.ot`, the same iteration on costs, is listed",
    "the gradient of GeomLoss": "its automatic differentiation is for its regularised value (an envelope); through the "
    "plan it sees the last half-step only, which is another gradient",
    "pygmtools": "its `sinkhorn` takes scores instead of costs and its loops are slower than the plain loops listed",
}
