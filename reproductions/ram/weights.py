"""What RAM has learned, in a file: without CLIP's own weights, but for exactly that CLIP."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch

from reproductions import UserError
from reproductions.ram.model import RamModel
from reproductions.storage import write_atomically

FROZEN = "clip."


def save_weights(path: Path, model: RamModel) -> None:
    """Write adapters, learned tokens and temperatures as safetensors; they are of no particular vocabulary."""
    learned = {name: x.cpu().contiguous() for name, x in model.state_dict().items() if not name.startswith(FROZEN)}
    write_atomically(path, safetensors.torch.save(learned, {"clip": model.clip.weights_hash()}))


def load_weights(path: Path, model: RamModel) -> None:
    """Read them into a model of the same settings.

    Raises:
        UserError: the file is missing, broken, of other settings, or was learned with other weights of CLIP.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            belongs = (file.metadata() or {}).get("clip")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"there is no file of RAM's weights {path}") from None
    except (safetensors.SafetensorError, OSError):
        raise UserError(f"{path} is truncated or no safetensors file: copy it again") from None
    wanted = {name: x.shape for name, x in model.state_dict().items() if not name.startswith(FROZEN)}
    if wrong := sorted(wanted.keys() ^ found.keys()) or [k for k, s in wanted.items() if found[k].shape != s]:
        raise UserError(f"{path} holds weights of RAM with other settings: they differ in {wrong[0]}")
    if belongs != model.clip.weights_hash():
        raise UserError(f"{path} was learned with other weights of CLIP than the model's: load those first")
    model.load_state_dict(found, strict=False)
