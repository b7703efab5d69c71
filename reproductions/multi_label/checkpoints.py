"""Trained weights on disk: the last ones and their moving average, without what is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
from torch import Tensor, nn

from reproductions import UserError
from reproductions.storage import content_hash, write_atomically
from reproductions.training import load_trained_state, trained_state

Which = Literal["last", "average"]


def save_weights(path: Path, last: nn.Module, average: nn.Module) -> None:
    """Write both, and the hash of what is frozen, as safetensors; names are ``last.<name>`` and ``average.<name>``."""
    weights = {
        f"{which}.{name}": x.detach().cpu().contiguous()
        for which, model in (("last", last), ("average", average))
        for name, x in trained_state(model).items()
    }
    write_atomically(path, safetensors.torch.save(weights, metadata={"frozen": _frozen_hash(last)}))


def load_weights(path: Path, model: nn.Module, which: Which = "average") -> None:
    """Read the last or the averaged weights into a model whose frozen part is that of the training.

    Raises:
        UserError: there is no such file, it is broken, or it is of another model.
    """
    found, frozen = _read(path, f"{which}.")
    wanted = trained_state(model)
    for name in sorted(found.keys() ^ wanted.keys())[:1]:
        raise UserError(f"{path} is of another model: {name} is only in {'the file' if name in found else 'the model'}")
    for name, x in wanted.items():
        if found[name].shape != x.shape:
            raise UserError(
                f"{path} is of another model: {name} has shape {tuple(found[name].shape)}, but {tuple(x.shape)} is"
                " expected"
            )
    if frozen != _frozen_hash(model):
        raise UserError(f"{path} was trained beside other frozen weights than those of this model: load the same ones")
    load_trained_state(model, found)


def _read(path: Path, prefix: str) -> tuple[dict[str, Tensor], str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, file.metadata()["frozen"]
    except FileNotFoundError:
        raise UserError(f"there is no file of trained weights {path}") from None
    except (safetensors.SafetensorError, TypeError, KeyError):
        raise UserError(f"{path} is no whole file of trained weights: train again, or copy it again") from None


def _frozen_hash(model: nn.Module) -> str:
    trained = trained_state(model)
    frozen = {name: x.detach().cpu().numpy() for name, x in model.state_dict().items() if name not in trained}
    return content_hash(list(frozen), *frozen.values())
