"""What a problem's arrays must be, and the sentence that says so where they are not."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

ArrayLike: TypeAlias = Any
"""A torch tensor, a NumPy array, or nested sequences of numbers."""


class InvalidProblem(ValueError):
    """What was passed cannot be a problem; the message says what it was and what to pass instead."""


def tensor(name: str, x: ArrayLike) -> Tensor:
    """``x`` as a float32 or float64 tensor that shares memory with it where it can."""
    if not isinstance(x, Tensor):
        try:
            array = np.asarray(x)
        except ValueError as error:
            raise InvalidProblem(f"{name} is not a rectangular array of numbers ({error})") from None
        if array.dtype.kind not in "biuf":
            raise InvalidProblem(f"{name} must hold real numbers, but its dtype is {array.dtype}")
        if array.dtype.kind in "biu" or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not array.flags.writeable or any(s < 0 for s in array.strides):
            array = array.copy()  # torch can neither mark memory read-only nor step backwards
        x = torch.from_numpy(array)
    if x.is_complex():
        raise InvalidProblem(f"{name} must hold real numbers, but its dtype is {x.dtype}")
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x if x.dtype in (torch.float32, torch.float64) else x.double()


def matrix(name: str, x: ArrayLike, words: str) -> Tensor:
    """A matrix or batch of matrices with no empty side and finite entries; ``words`` say the shape it should have."""
    M = tensor(name, x)
    if M.ndim < 2:
        raise InvalidProblem(
            f"{name} has shape {tuple(M.shape)}, but it must be a matrix or a batch of matrices, {words}"
        )
    if M.numel() == 0:
        raise InvalidProblem(f"{name} has shape {tuple(M.shape)}, but no side may be empty")
    check_finite(name, M)
    return M


def check_finite(name: str, M: Tensor) -> None:
    """NaN and infinity are refused, with their number and the place of the first."""
    if math.isfinite(_sum(M.detach())):
        return  # one pass: a sum is finite only if every entry is
    bad = ~torch.isfinite(M.detach())
    if not bool(bad.any()):
        return  # finite entries whose sum overflows
    where = bad.nonzero()
    kind = "NaN" if bool(torch.isnan(M.detach()[tuple(where[0])])) else "infinite"
    raise InvalidProblem(
        f"{name} holds {len(where)} NaN or infinite {'entry' if len(where) == 1 else 'entries'}, the first ({kind}) at "
        f"{where[0].tolist()}; every entry must be a finite number (give a forbidden pair a large finite cost)"
    )


def _sum(M: Tensor) -> float:
    """The sum; that of few entries by NumPy, on this thread alone, since waking others would take longer."""
    if M.device.type == "cpu" and M.numel() < 2**20:
        with np.errstate(all="ignore"):
            return float(M.numpy().sum())
    return M.sum().item()


def weights(name: str, w: ArrayLike | None, C: Tensor, size: int) -> Tensor:
    """Weights ``(*batch, size)`` or ``(size,)`` in the cost's dtype; uniform with total 1 when left out."""
    if w is None:
        return torch.full((size,), 1.0 / size, dtype=C.dtype, device=C.device)
    weights = tensor(name, w)
    expected = (*C.shape[:-2], size)
    if tuple(weights.shape) not in (expected, (size,)):
        raise InvalidProblem(
            f"{name} has shape {tuple(weights.shape)}, but for a cost of shape {tuple(C.shape)} it must have shape "
            f"{expected}" + (f" or ({size},)" if C.ndim > 2 else "")
        )
    check_same_device(name, weights, "cost", C)
    check_finite(name, weights)
    lowest = weights.detach().min().item()
    if lowest < 0:
        raise InvalidProblem(
            f"{name} has a negative weight, {lowest:g}; weights are masses and must be zero or positive"
        )
    return weights.to(C.dtype)


def per_problem(name: str, x: ArrayLike, C: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A finite number of each problem, shape ``(*batch,)`` in the cost's dtype or this, from one or ``(*batch,)``."""
    numbers, batch = tensor(name, x), C.shape[:-2]
    if numbers.shape not in ((), batch):
        raise InvalidProblem(
            f"{name} has shape {tuple(numbers.shape)}, but for a cost of shape {tuple(C.shape)} it must be a number"
            + (f" or have shape {tuple(batch)}, one of each problem" if batch else "")
        )
    if numbers.ndim:
        check_same_device(name, numbers, "cost", C)
    check_finite(name, numbers)
    return numbers.to(dtype=dtype or C.dtype, device=C.device).expand(batch)


def check_total(name: str, weights: Tensor) -> None:
    """A side without any mass is refused."""
    if bool((weights.detach().sum(-1) <= 0).any()):
        raise InvalidProblem(f"{name} has total mass 0; at least one weight on each side must be positive")


def total_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Σa / Σb, which must be 1 to rounding, as a factor for b: shape ``(*batch, 1)``, no gradient."""
    check_total("a", a)
    check_total("b", b)
    total_a, total_b = a.detach().sum(-1, dtype=torch.float64), b.detach().sum(-1, dtype=torch.float64)
    total_a, total_b = torch.broadcast_tensors(total_a, total_b)
    off = (total_a - total_b).abs() > (1e-6 if a.dtype == torch.float64 else 1e-4) * total_a
    if bool(off.any()):
        k = int(off.reshape(-1).nonzero()[0])
        where = f" in problem {k} of the batch" if off.ndim else ""
        raise InvalidProblem(
            f"the weights do not sum to the same total: Σa = {total_a.reshape(-1)[k].item():.6g} and "
            f"Σb = {total_b.reshape(-1)[k].item():.6g}{where}; scale them so that both totals agree, for instance to 1"
        )
    return (total_a / total_b).to(a.dtype).unsqueeze(-1)


def check_same_device(name: str, M: Tensor, other: str, reference: Tensor) -> None:
    """Tensors of one problem live on one device."""
    if M.device != reference.device:
        raise InvalidProblem(f"{name} is on {M.device} and {other} on {reference.device}; pass both on one device")
