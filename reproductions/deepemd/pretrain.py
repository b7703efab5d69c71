"""Pre-training: global average pooling, a linear head and cross entropy on the base classes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.deepemd import backbone
from reproductions.deepemd.backbone import ResNet12
from reproductions.storage import Cache, content_hash, source_hash, write_atomically


@dataclass(frozen=True)
class Pretraining:
    """Settings of one pre-training run; images are resized to ``side`` and moved about at random."""

    classes: tuple[int, ...]
    side: int = 40
    widths: tuple[int, ...] = (16, 32, 64)
    epochs: int = 25
    batch: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    rotation: float = 15.0  # degrees, either way
    zoom: float = 0.15
    shift: float = 0.12  # of the side
    seed: int = 0

    def resized(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image under its own small random rotation, zoom and shift, resized to ``side``."""
        r = 2 * torch.rand(4, len(images), generator=generator) - 1
        angle, scale = torch.deg2rad(r[0] * self.rotation), 1 + r[1] * self.zoom
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        dx, dy = 2 * self.shift * r[2], 2 * self.shift * r[3]
        theta = torch.stack([torch.stack([cos, -sin, dx], -1), torch.stack([sin, cos, dy], -1)], 1)
        grid = F.affine_grid(theta, [len(images), images.shape[1], self.side, self.side], align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


def pretrained_encoder(
    images: Tensor,
    labels: Tensor,
    settings: Pretraining,
    cache: Cache,
    on_epoch: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
) -> ResNet12:
    """The encoder trained from scratch on these images, or its cached weights.

    The state is saved after every epoch, and each epoch draws from a generator of its own: a killed training goes on
    with the epoch it was in and ends with the same weights as an undisturbed one.

    Args:
        images: ``(n, channels, height, width)``.
        labels: ``(n,)``, 0 … classes − 1.
        settings: the run.
        cache: where the weights and the state of an unfinished run are kept.
        on_epoch: told (finished epochs, all epochs, mean loss).
    """
    code = source_hash((Path(__file__), Path(backbone.__file__)))
    key = content_hash(images.numpy(), labels.numpy(), asdict(settings), code, torch.__version__)
    torch.manual_seed(settings.seed)
    encoder = ResNet12(settings.widths, images.shape[1])
    checkpoint = cache.path("weights", key, ".part")

    def train() -> dict[str, Tensor]:
        _train(encoder, images, labels, settings, checkpoint, on_epoch)
        return encoder.state_dict()

    encoder.load_state_dict(cache.tensors("weights", key, train))
    checkpoint.unlink(missing_ok=True)
    return encoder.eval()


def _train(
    encoder: ResNet12,
    images: Tensor,
    labels: Tensor,
    settings: Pretraining,
    checkpoint: Path,
    on_epoch: Callable[[int, int, float], None],
) -> None:
    torch.manual_seed(settings.seed + 1)
    head = nn.Linear(settings.widths[-1], len(settings.classes))
    model = nn.ModuleDict({"encoder": encoder, "head": head})
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings.lr,
        momentum=settings.momentum,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    start = _restore(checkpoint, parts)
    model.train()
    for epoch in range(start, settings.epochs):
        generator = torch.Generator().manual_seed(1000 * settings.seed + epoch)
        losses = []
        for index in torch.randperm(len(images), generator=generator).split(settings.batch):
            if len(index) < 2:
                continue  # batch normalisation needs company
            x = settings.augmented(images[index], generator)
            loss = F.cross_entropy(head(encoder(x).mean((-2, -1))), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        buffer = io.BytesIO()
        torch.save({"epoch": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
        write_atomically(checkpoint, buffer.getvalue())
        on_epoch(epoch + 1, settings.epochs, sum(losses) / len(losses))


def _restore(checkpoint: Path, parts: dict[str, Any]) -> int:
    """The epoch to go on with; 0 without a readable checkpoint."""
    try:
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["epoch"])
    except (FileNotFoundError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError):
        return 0


@torch.no_grad()
def feature_maps(encoder: ResNet12, images: Tensor, settings: Pretraining) -> Tensor:
    """Feature maps of resized images without augmentation: ``(n, channels, height, width)``."""
    return torch.cat([encoder(settings.resized(part)) for part in images.split(256)])


def cached_feature_maps(encoder: ResNet12, images: Tensor, settings: Pretraining, cache: Cache) -> Tensor:
    """``feature_maps``, computed once for these weights and images."""
    weights = [x.numpy() for x in encoder.state_dict().values()]
    key = content_hash(*weights, images.numpy(), settings.side, torch.__version__)
    return cache.tensors("features", key, lambda: {"maps": feature_maps(encoder, images, settings)})["maps"]
