"""Images from disk to the device, with random numbers that depend on neither workers nor interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from reproductions import UserError
from reproductions.machine import Machine


def seed_of(*numbers: int) -> int:
    """One seed for these numbers (a run's seed, an epoch, a position), unlike that of any others."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def batches(what: str, dataset: Dataset, machine: Machine, **settings: Any) -> Iterator[Any]:
    """Batches on the device, as a ``DataLoader`` with these settings makes them; the machine is told what they are for.

    Raises:
        UserError: an image is broken or too small.
    """
    cuda = machine.device.type == "cuda"
    loader = DataLoader(dataset, num_workers=machine.workers, pin_memory=cuda, **settings)
    try:
        for k, batch in enumerate(loader, start=1):
            parts = [x.to(machine.device, non_blocking=True) for x in (batch if isinstance(batch, list) else [batch])]
            yield parts if isinstance(batch, list) else parts[0]
            machine.tell(what, k / len(loader))
    except UserError as error:  # from a worker it comes with its traceback, the sentence in the last line
        sentence = str(error).strip().splitlines()[-1]
        raise UserError(sentence.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")) from None
