"""Checkpoints in DeepEMD's official form, so that official weights load here and ours load there.

A file holds a dictionary whose one key ``params`` is a state dict. After pre-training its keys are the encoder's own
(``layer1.0.conv1.weight``), after meta-training they start with ``module.encoder.``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from reproductions import UserError
from reproductions.storage import write_atomically

Stage = Literal["pretrained", "meta"]

PREFIXES: dict[Stage, str] = {"pretrained": "", "meta": "module.encoder."}
OFFICIAL_NAMES = {"mini_imagenet": "miniimagenet", "tiered_imagenet": "tieredimagenet"}
"""The data sets that the official code calls otherwise than the loaders here."""


def pretrained_model(folder: Path, dataset: str) -> Path:
    """Where the encoder after pre-training lies, as in the official archive."""
    return folder / "deepemd_pretrain_model" / OFFICIAL_NAMES.get(dataset, dataset) / "resnet12" / "max_acc.pth"


def trained_model(folder: Path, dataset: str, variant: str) -> Path:
    """Where the encoder after meta-training lies, as in the official archive."""
    return folder / "deepemd_trained_model" / OFFICIAL_NAMES.get(dataset, dataset) / variant / "max_acc.pth"


def save_encoder(path: Path, encoder: nn.Module, stage: Stage) -> None:
    """Write the encoder's weights under the official names of this stage."""
    weights = {PREFIXES[stage] + name: x.detach().cpu() for name, x in encoder.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"params": weights}, buffer)
    write_atomically(path, buffer.getvalue())


def load_encoder(path: Path, encoder: nn.Module) -> None:
    """Read weights of either stage into the encoder; what else the file holds, as its classifier, is left out.

    Raises:
        UserError: there is no such file, it is broken, or it lacks weights of the encoder or has them in other shapes.
    """
    found = _encoder_weights(path)
    wanted = encoder.state_dict()
    # batch normalisation counts its batches, but nothing reads the count, and old files lack it
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        some = f"{missing[0]} and {len(missing) - 1} others" if len(missing) > 1 else missing[0]
        raise UserError(f"{path} is no checkpoint of this encoder: it lacks {some}")
    for name, x in found.items():
        if name in wanted and x.shape != wanted[name].shape:
            raise UserError(
                f"{path} is no checkpoint of this encoder: {name} has shape {tuple(x.shape)},"
                f" but {tuple(wanted[name].shape)} is expected"
            )
    encoder.load_state_dict({name: found.get(name, x) for name, x in wanted.items()})


def _encoder_weights(path: Path) -> dict[str, Tensor]:
    """The weights without their prefix, by the official rule: the first key tells whether there is one."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is truncated or no checkpoint of torch: copy it again") from error
    weights = content.get("params") if isinstance(content, dict) else None
    if not (isinstance(weights, dict) and weights and all(isinstance(x, Tensor) for x in weights.values())):
        raise UserError(
            f"{path} is no checkpoint of DeepEMD: a dictionary with a state dict under 'params' is expected"
        )
    if "encoder" not in next(iter(weights)):
        return weights
    whole = {name.removeprefix("module."): x for name, x in weights.items()}
    return {name.removeprefix("encoder."): x for name, x in whole.items() if name.startswith("encoder.")}
