"""How Sinkhorn's iteration is run: compiled for the CPU, in the log domain in torch, and as Newton's method.

All take a batch, the iterations each of its problems has had (B,), the tolerance on the marginal error as a fraction
of the mass, and the number of iterations at which each problem stops (B,).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.kernels.sinkhorn import sinkhorn_plans
from solvers.kernels.sinkhorn_newton import newton_plans
from solvers.kernels.sinkhorn_triton import sinkhorn_cuda
from solvers.solver import Clock

WORK = 50_000_000  # cost entries read between two looks at the clock, when there is a time limit
ROUNDING = 0.9  # of the tolerance is asked of the iteration; the rest is for the rounding of the plan


class Batch(NamedTuple):
    """Problems to iterate: C (B, n, m), a (B, n), b (B, m), ε (B,), and the g (B, m) to start from, −∞ where b is 0."""

    C: Tensor
    a: Tensor
    b: Tensor
    reg: Tensor
    g: Tensor


class Iterated(NamedTuple):
    """Plan (B, n, m) in the cost's dtype, potentials (B, n) and (B, m), iterations (B,), and who converged (B,)."""

    T: Tensor
    f: Tensor
    g: Tensor
    iterations: Tensor
    converged: Tensor


def scale_compiled(batch: Batch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock) -> Iterated:
    """Row and column scalings on the CPU, without a graph; potentials in float64."""
    C, a, b, reg, g = (x.detach().contiguous() for x in batch)
    f, g = torch.zeros(a.shape, dtype=torch.float64), g.to(torch.float64, copy=True)
    T = torch.from_numpy(np.empty(C.shape, C.numpy().dtype))  # NumPy asks for large pages where torch does not
    iterations = iterations.clone()
    converged = torch.zeros(len(C), dtype=torch.bool)
    limit = error_limit(a, tolerance)
    C_, a_, b_, reg_, limit_ = (x.numpy() for x in (C, a, b, reg, limit))
    f_, g_, T_, iterations_, converged_ = (x.numpy() for x in (f, g, T, iterations, converged))
    threads = numba.get_num_threads()
    for until in stretches(C.numel(), iterations, converged, stop, clock):
        sinkhorn_plans(C_, a_, b_, reg_, limit_, until, f_, g_, T_, iterations_, converged_, threads)
    return Iterated(T, f, g, iterations, converged)


def scale_on_gpu(batch: Batch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock) -> Iterated:
    """Row and column scalings by Triton's kernels, without a graph; potentials in float64."""
    C, a, b, reg, g = (x.detach() for x in batch)
    limit = error_limit(a, tolerance)
    expired = None if clock.time_limit is None else lambda: clock.expired
    f, g, done, converged, T = sinkhorn_cuda(C, a, b, reg, limit, stop - iterations, g, expired)
    return Iterated(T, f, g, iterations + done, converged)


def newton_compiled(batch: Batch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock) -> Iterated:
    """Newton steps on the dual, on the CPU, without a graph; the shorter side's potential is the variable."""
    C, a, b, reg, g = (x.detach().cpu() for x in batch)
    home = batch.C.device
    turned = C.shape[-2] < C.shape[-1]
    if turned:  # the potential of the rows, fitted to g by one more half of an iteration
        M = (g.unsqueeze(-2) - C) / reg[:, None, None]
        start = reg.unsqueeze(-1) * (safe_log(a.double()) - torch.logsumexp(M, -1))
        C, a, b, g = C.mT, b, a, start
    C = C.contiguous()
    a, b, g = (x.to(torch.float64, copy=True).contiguous() for x in (a, b, g))
    f, T, iterations = torch.zeros_like(a), torch.empty_like(C), iterations.cpu().clone()
    converged, limit = torch.zeros(len(C), dtype=torch.bool), error_limit(a, tolerance)
    chunks = min(len(C), 8 * numba.get_num_threads())
    C_, a_, b_, reg_, limit_ = (x.numpy() for x in (C, a, b, reg.contiguous(), limit))
    f_, g_, T_, iterations_, converged_ = (x.numpy() for x in (f, g, T, iterations, converged))
    for until in stretches(C.numel() * C.shape[-1], iterations, converged, stop.cpu(), clock):
        newton_plans(C_, a_, b_, reg_, limit_, until, f_, g_, T_, iterations_, converged_, chunks)
    if turned:
        T, f, g = T.mT.contiguous(), g, f
    return Iterated(*(x.to(home) for x in (T, f, g, iterations, converged)))


def scale_in_log_domain(batch: Batch, iterations: Tensor, tolerance: float, stop: Tensor, clock: Clock) -> Iterated:
    """The same iteration on the potentials themselves, in the cost's dtype, on any device, through autograd.

    After the column scaling the columns are exact, so the error of the rows is the whole marginal error, and the row
    sums that it needs are those the next row scaling computes anyway.
    """
    C, a, b, reg, g = batch
    reg = reg.to(C.dtype).unsqueeze(-1)
    M, log_a, log_b = -C / reg.unsqueeze(-1), safe_log(a), safe_log(b)
    limit = error_limit(a.detach(), tolerance)
    v = g.to(C.dtype) / reg
    u = torch.where(a > 0, torch.zeros_like(a), log_a)
    iterations, converged = iterations.clone(), torch.zeros(len(C), dtype=torch.bool, device=C.device)
    active = torch.arange(len(C), device=C.device)  # the problems still running
    now = (M, log_a, log_b, u, v)  # their rows of everything
    first = True
    while len(active) > 0:
        M_, log_a_, log_b_, u_, v_ = now
        row_sums = torch.logsumexp(M_ + v_.unsqueeze(-2), -1)
        if not first:
            a_ = log_a_.detach().exp()
            error = (torch.exp(u_.detach() + row_sums.detach()) - a_).abs().sum(-1, dtype=torch.float64)
            good = error <= limit[active]
            out = good | (iterations[active] >= stop[active])
            out = torch.ones_like(out) if clock.expired else out
            if bool(out.any()):
                # Write back what is finished and go on with the rest.
                finished = active[out]
                u, v = u.index_copy(0, finished, u_[out]), v.index_copy(0, finished, v_[out])
                converged[finished] = good[out]
                active = active[~out]
                M_, log_a_, log_b_, u_, v_, row_sums = (x[~out] for x in (*now, row_sums))
        u_ = log_a_ - row_sums
        v_ = log_b_ - torch.logsumexp(M_ + u_.unsqueeze(-1), -2)
        now = (M_, log_a_, log_b_, u_, v_)
        iterations[active] += 1
        first = False
    T = torch.exp(u.unsqueeze(-1) + v.unsqueeze(-2) + M)
    return Iterated(T, reg * u, reg * v, iterations, converged)


def stretches(
    work: int, iterations: Tensor, converged: Tensor, stop: Tensor, clock: Clock
) -> Iterator[NDArray[np.int64]]:
    """The iteration (B,) at which each problem is to stop next, until all are done or time is up; at least one.

    A compiled loop brings ``iterations`` and ``converged`` up to date in between. ``work`` is that of one iteration of
    the whole batch, in cost entries. Without a time limit there is one stretch.
    """
    step = int(stop.max()) if len(stop) and clock.time_limit is None else 1 + WORK // max(1, work)
    while True:
        yield torch.minimum(stop, iterations + step).numpy()
        if bool((converged | (iterations >= stop)).all()) or clock.expired:
            return


def error_limit(a: Tensor, tolerance: float) -> Tensor:
    """The row error (B,), float64, at which an iteration stops for a marginal error of ``tolerance`` of the mass."""
    return ROUNDING * tolerance * a.sum(-1, dtype=torch.float64)


def safe_log(weights: Tensor) -> Tensor:
    """log of weights, −∞ for zero, with a zero gradient there instead of NaN."""
    positive = weights > 0
    return torch.where(positive, torch.log(torch.where(positive, weights, 1)), -torch.inf)
