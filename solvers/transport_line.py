"""Transport between points on the line, in closed form and without a matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers import validation
from solvers.kernels.transport_line import transport_line
from solvers.solver import threads_of_torch
from solvers.validation import ArrayLike, InvalidProblem


class LinePlan(NamedTuple):
    """An optimal plan between points on the line, sparse: n + m − 1 arcs, some of which may carry nothing.

    ``value`` has shape ``(*batch,)``, float64; ``source`` and ``target`` (int64) and ``mass`` have shape
    ``(*batch, n + m − 1)``; the potentials f and g, with f_i + g_j ≤ |x_i − y_j|^p and Σ a f + Σ b g = value, those of
    the points.
    """

    value: Tensor
    source: Tensor
    target: Tensor
    mass: Tensor
    f: Tensor
    g: Tensor


def emd_1d(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None, p: float = 1.0
) -> LinePlan:
    """The earth mover's distance between weighted points on the line for the cost |x_i − y_j|^p, without a matrix.

    Sorted points are matched in order (Villani, Topics in Optimal Transportation, 2003, Theorem 2.18), in
    O((n + m) log(n + m)) a problem. The value is differentiable with respect to the points and, by the envelope
    theorem, to the weights.

    Args:
        x: source points, shape ``(*batch, n)``, finite.
        y: target points, shape ``(*batch, m)``.
        a: source weights, shape ``(*batch, n)`` or ``(n,)``; uniform with total 1 when left out.
        b: target weights, likewise, of the same total as a.
        p: the power of the distance, at least 1.

    Raises:
        InvalidProblem: points or weights that are not finite, that do not fit, or weights that a ``TransportProblem``
            refuses.
        ValueError: p below 1 or not finite.
    """
    if not 1 <= p < float("inf"):
        raise ValueError(f"p must be a finite number ≥ 1, not {p!r}; the distance to a power below 1 is not convex")
    x, y = _points("x", x), _points("y", y)
    if x.shape[:-1] != y.shape[:-1]:
        raise InvalidProblem(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, but all their dimensions but the last must agree"
        )
    validation.check_same_device("y", y, "x", x)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(dtype), y.to(dtype)
    a = validation.weights("a", a, x.unsqueeze(-1), x.shape[-1]).expand(x.shape)
    b = validation.weights("b", b, y.unsqueeze(-1), y.shape[-1]).expand(y.shape)
    return LinePlan(*_Line.apply(x, y, a, b * validation.total_ratio(a, b), float(p)))


def _points(name: str, x: ArrayLike) -> Tensor:
    points = validation.tensor(name, x)
    if points.ndim < 1 or points.numel() == 0:
        raise InvalidProblem(
            f"{name} has shape {tuple(points.shape)}, but points on the line must have shape (*batch, n), none of it 0"
        )
    validation.check_finite(name, points)
    return points


class _Line(torch.autograd.Function):
    """``emd_1d`` on tensors of one dtype; of its outputs only the value has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float) -> tuple[Tensor, ...]:
        batch, slopes = x.shape[:-1], any(ctx.needs_input_grad)
        arrays = [z.double().cpu().reshape(-1, z.shape[-1]).contiguous().numpy() for z in (x, y, a, b)]
        with threads_of_torch():
            found = transport_line(*arrays, *(np.argsort(z, 1) for z in arrays[:2]), p, slopes)
        value, source, target = (torch.from_numpy(z).reshape(batch + z.shape[1:]).to(x.device) for z in found[:3])
        mass, f, g = (torch.from_numpy(z).to(x).reshape(batch + z.shape[1:]) for z in found[3:6])
        if slopes:
            ctx.save_for_backward(*(torch.from_numpy(z).to(x).reshape(batch + z.shape[1:]) for z in found[6:]), f, g)
        ctx.mark_non_differentiable(source, target, mass, f, g)
        return value, source, target, mass, f, g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *(d.to(z.dtype).unsqueeze(-1) * z for z in ctx.saved_tensors), None
