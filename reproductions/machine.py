"""Where a training runs: one process, or one of several that torchrun started and that average their gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from reproductions import UserError
from reproductions.devices import device_of

CPU = torch.device("cpu")
WORKERS = min(8, os.cpu_count() or 1)
"""Processes that decode images where nothing else is said."""
PATIENCE = timedelta(days=1)
"""How long the other processes wait for the first one, which alone validates."""


@dataclass(frozen=True)
class Machine:
    """The device and the place among the processes; what is trained does not depend on the rest.

    Attributes:
        workers: processes that decode images; 0 does it in this one.
        tell: told what the present pass over images does, and which fraction of it is finished.
    """

    device: torch.device = CPU
    rank: int = 0
    count: int = 1
    workers: int = 0
    tell: Callable[[str, float], None] = lambda what, fraction: None

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates, writes and reports."""
        return self.rank == 0

    def share(self, model: nn.Module) -> nn.Module:
        """The model on the device; its gradients are averaged over the processes."""
        model.to(self.device)
        return DistributedDataParallel(model) if self.count > 1 else model

    def gathered(self, x: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape, on the CPU; every process has all of them."""
        if self.count == 1:
            return [x.cpu()]
        x = x.to(self.device)
        found = [torch.empty_like(x) for _ in range(self.count)]
        distributed.all_gather(found, x)
        return [y.cpu() for y in found]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def open_machine(
    device: str = "cpu", workers: int = 0, tell: Callable[[str, float], None] = lambda what, fraction: None
) -> Iterator[Machine]:
    """The machine as torchrun's environment describes it: with several processes each takes a CUDA device of its own.

    Raises:
        UserError: the device is unknown or not there.
    """
    several = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if several else None)
    if not several:
        yield Machine(chosen, workers=workers, tell=tell)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Machine(chosen, distributed.get_rank(), distributed.get_world_size(), workers, tell)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    device = device_of(name)
    if device.type == "cpu":
        return device
    if local_rank is not None:
        device = torch.device("cuda", local_rank)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= there:
        raise UserError(f"the device {str(device)!r} is wanted, but torch sees {there} CUDA devices here")
    torch.cuda.set_device(device)
    return device
