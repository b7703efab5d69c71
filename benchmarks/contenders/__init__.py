"""A contender: one way to solve one family of problems, ours or a peer's, as a function of no arguments to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import Array, Call

__all__ = ["Array", "Call", "Contender", "Instance", "one_problem"]


@dataclass(frozen=True, eq=False)
class Instance:
    """What is to be solved: arrays in float64, a matrix (batch, n, m) first, and the dtype and device to solve in."""

    arrays: tuple[Array, ...]
    dtype: str = "float64"
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, n, m)."""
        return self.arrays[0].shape

    def tensors(self) -> list[Tensor]:
        """The arrays as torch tensors in the dtype and on the device."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return [torch.tensor(x, dtype=dtype, device=self.device) for x in self.arrays]

    def numpy(self) -> list[Array]:
        """The arrays as NumPy arrays in the dtype."""
        return [np.ascontiguousarray(x, dtype=self.dtype) for x in self.arrays]


@dataclass(frozen=True, eq=False)
class Contender:
    """A solver and how it is called.

    Attributes:
        make: (instance, **task) → the function to be timed. What comes before the solving, such as moving the arrays
            to where the solver wants them, happens in ``make``. It raises NotImplementedError, with the reason, for
            what the solver cannot do.
        library: the distribution it comes with, whose version is recorded; "matchmark" for ours.
        kind: what the tables tell apart: the domain of a Sinkhorn iteration, for instance.
        devices: where it runs.
        largest: the largest n it is asked to solve, and why no more; None for no limit.
    """

    make: Callable[..., Call]
    library: str
    kind: str
    devices: tuple[str, ...] = ("cpu",)
    largest: tuple[int, str] | None = None

    @property
    def is_ours(self) -> bool:
        return self.library == "matchmark"

    def prepared(self, instance: Instance, **task: Any) -> Call:
        """A function of no arguments that solves the instance and waits for the device.

        Raises:
            NotImplementedError: it cannot run here, or not on this instance; the message says why.
        """
        if instance.device not in self.devices:
            raise NotImplementedError(f"{self.library} runs on {' and '.join(self.devices)} only here")
        common.require_device(instance.device)
        if self.largest is not None and max(instance.shape[1:]) > self.largest[0]:
            raise NotImplementedError(self.largest[1])
        call = self.make(instance, **task)
        if instance.device == "cpu":
            return call

        def synchronized() -> Any:
            answer = call()
            common.synchronize(instance.device)
            return answer

        return synchronized


def one_problem(instance: Instance) -> None:
    """Skip a batch, for a function that takes one problem while its library has another for batches."""
    if instance.shape[0] > 1:
        raise NotImplementedError("it takes one problem; for batches its library has another function, which is listed")
