"""Training of a multi-label model on the images of a split, as a configuration says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reproductions import UserError
from reproductions.loading import batches, seed_of
from reproductions.machine import Machine
from reproductions.multi_label.augmentation import RECIPES
from reproductions.multi_label.checkpoints import save_weights
from reproductions.multi_label.configuration import Configuration, OneCycle, Settings
from reproductions.multi_label.loading import STEPPED, LabelledImages, TrainingImages, epoch_order
from reproductions.multi_label.optimization import make_optimizers, make_schedule
from reproductions.storage import content_hash
from reproductions.training import Average, OnEpoch, Training


class MultiLabelModel(Protocol):
    """A ``torch.nn.Module`` that is trained by its own loss and says how present each label is.

    In mixed precision ``loss`` runs under CUDA's autocast, which does softmaxes, logarithms, sums and torch's losses in
    float32 and products of matrices in half precision: a solver that multiplies leaves it,
    ``torch.autocast("cuda", enabled=False)``.
    """

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """The loss, float32, of images ``(B, 3, side, side)`` and int8 targets ``(B, C)`` in 1, 0 and −1, left out."""

    def scores(self, images: Tensor) -> Tensor:
        """Scores ``(B, C)``, the higher the more present."""

    def to(self, device: torch.device) -> Any: ...
    def eval(self) -> Any: ...


def train(
    model: MultiLabelModel,
    images: LabelledImages,
    configuration: Configuration,
    path: Path,
    machine: Machine,
    on_epoch: OnEpoch = lambda epoch: None,
) -> None:
    """Train the parameters that are not frozen; ``path`` gets the last weights and their moving average.

    The unfinished training's state lies beside ``path`` and outlives changes of the code. Several processes step on the
    mean gradient of their shares of a batch: that of the whole batch where the loss is a mean over images. A loss that
    normalises over a batch, as RAM's, then normalises over each share. Batch normalisation sees a share, too.

    Raises:
        UserError: the settings do not fit the machine, the images or the model, an image is missing or broken, or the
            loss is no longer finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a torch.nn.Module is trained, but {type(model).__name__} is none")
    settings = configuration.training
    _check(settings, images, machine)
    optimizers = make_optimizers(model, settings.optimizers)
    start = {name: x.cpu().numpy() for name, x in model.state_dict().items()}
    key = content_hash(configuration.model_dump(mode="json"), images.sha256, list(start), *start.values())
    steps = len(images) // settings.batch
    schedules = [make_schedule(optimizer, settings.schedule, settings.epochs * steps) for optimizer in optimizers]
    stepwise = isinstance(settings.schedule, OneCycle)
    transform = RECIPES[settings.augmentation](settings)
    shared = machine.share(_Loss(model))
    average = Average(model, settings.ema)

    def losses(epoch: int, first: int) -> Iterator[Tensor]:
        dataset = TrainingImages(images, transform, settings.seed, epoch)
        order = epoch_order(len(images), settings.batch, settings.seed, epoch, machine)
        loaded = batches("training", dataset, machine, batch_sampler=order[first:])
        for step, (x, targets) in enumerate(loaded, start=first):
            torch.manual_seed(seed_of(STEPPED, settings.seed, epoch, step, machine.rank))
            with torch.autocast(machine.device.type, enabled=settings.amp):
                loss = shared(x, targets)
            yield loss

    Training(
        model,
        optimizers,
        losses,
        settings.epochs,
        path.with_name(f"{key[:32]}.part"),
        schedules=[] if stepwise else schedules,
        step_schedules=schedules if stepwise else [],
        average=average,
        clip=settings.clip,
        amp=settings.amp,
        every=settings.every,
        machine=machine,
    ).run(on_epoch)
    if machine.first:
        save_weights(path, model, average.module)
    machine.wait()


class _Loss(nn.Module):
    """The loss as a forward pass, which is what gradients are averaged after."""

    def __init__(self, model: MultiLabelModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(images, targets)


def _check(settings: Settings, images: LabelledImages, machine: Machine) -> None:
    if settings.batch % machine.count:
        raise UserError(f"a batch of {settings.batch} images cannot be shared evenly by {machine.count} processes")
    if len(images) < settings.batch:
        raise UserError(
            f"the {images.split} split of {images.title} has {len(images)} images, but a batch takes {settings.batch}"
        )
    if settings.amp and machine.device.type != "cuda":
        raise UserError(f"mixed precision needs a CUDA device, but the device is {machine.device}: set amp to false")
