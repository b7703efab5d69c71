"""The names of devices that commands take."""

from __future__ import annotations

import torch

from reproductions import UserError


def device_of(name: str) -> torch.device:
    """The device of this name, whether or not this machine has it.

    Raises:
        UserError: the name is of no device, or of one that nothing here runs on.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no device {name!r}; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"the device {name!r} is not supported; use cpu, cuda or cuda:N")
    return device
