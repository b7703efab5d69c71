"""Pre-training: global average pooling, a linear head and cross entropy on the base classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DistributedSampler

from reproductions import UserError, training
from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd import backbone, descent
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import save_encoder
from reproductions.deepemd.descent import Descent, FileDescent, nesterov
from reproductions.deepemd.embedding import make_embedding
from reproductions.deepemd.loading import TrainingImages
from reproductions.deepemd.validation import make_validation
from reproductions.loading import batches
from reproductions.machine import Machine
from reproductions.storage import Cache, content_hash, source_hash
from reproductions.training import OnEpoch, Selection, Training


@dataclass(frozen=True, kw_only=True)
class Pretraining(Descent):
    """Settings of one pre-training run; images are resized to ``side`` and moved about at random."""

    classes: tuple[int, ...]
    side: int = 40
    widths: tuple[int, ...] = (16, 32, 64)
    epochs: int = 25
    batch: int = 64
    lr: float = 0.05
    rotation: float = 15.0  # degrees, either way
    zoom: float = 0.15
    shift: float = 0.12  # of the side
    flip: bool = False  # every other image, mirrored

    def resized(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image under its own small random rotation, zoom and shift, resized to ``side``."""
        r = 2 * torch.rand(4, len(images), generator=generator) - 1
        angle, scale = torch.deg2rad(r[0] * self.rotation), 1 + r[1] * self.zoom
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        dx, dy = 2 * self.shift * r[2], 2 * self.shift * r[3]
        if self.flip:
            images = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, images.flip(-1), images)
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
    code = source_hash((Path(__file__), Path(training.__file__), Path(descent.__file__), Path(backbone.__file__)))
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


class Classifier(nn.Module):
    """An encoder, global average pooling and a linear head."""

    def __init__(self, encoder: ResNet12, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images).mean((-2, -1)))


def _train(
    encoder: ResNet12,
    images: Tensor,
    labels: Tensor,
    settings: Pretraining,
    state: Path,
    on_epoch: Callable[[int, int, float], None],
) -> None:
    torch.manual_seed(settings.seed + 1)
    model = Classifier(encoder, len(settings.classes))

    def losses(epoch: int, _: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1000 * settings.seed + epoch)
        for index in torch.randperm(len(images), generator=generator).split(settings.batch):
            if len(index) > 1:  # batch normalisation needs company
                yield F.cross_entropy(model(settings.augmented(images[index], generator)), labels[index])

    optimizer = nesterov(model, settings)
    schedule = CosineAnnealingLR(optimizer, settings.epochs)
    run = Training(model, [optimizer], losses, settings.epochs, state, [schedule]).run
    run(lambda epoch: on_epoch(epoch.number, settings.epochs, epoch.loss))


@dataclass(frozen=True, kw_only=True)
class FilePretraining(FileDescent):
    """Settings of pre-training on files, by default the paper's; 84×84 crops under the FCN transform.

    Attributes:
        batch: images of a step, shared evenly by the processes.
    """

    widths: tuple[int, ...] = (64, 160, 320, 640)
    epochs: int = 120
    batch: int = 128
    lr: float = 0.1
    step: int = 30
    gamma: float = 0.2
    validation: int = 100


def pretrain(
    train: ImageFiles,
    val: ImageFiles,
    settings: FilePretraining,
    path: Path,
    machine: Machine,
    on_epoch: OnEpoch = lambda epoch: None,
) -> None:
    """Train an encoder to tell the training classes apart; ``path`` gets that of the best epoch on validation episodes.

    The unfinished training's state lies beside ``path``. It does not die with the code, as caches do: a training of
    days should outlive an unrelated change.

    Raises:
        UserError: a split is too small, an image is broken, or the batch cannot be shared evenly.
    """
    if settings.batch % machine.count:
        raise UserError(f"a batch of {settings.batch} images cannot be shared evenly by {machine.count} processes")
    embedding = make_embedding("fcn", train.name)
    validation = make_validation(val, embedding, settings, machine)

    torch.manual_seed(settings.seed)
    model = Classifier(ResNet12(settings.widths), len(train.classes))
    shared = machine.share(model)

    def losses(epoch: int, _: int) -> Iterator[Tensor]:
        images = TrainingImages(train, embedding.transform, settings.seed, epoch)
        sampler: DistributedSampler[tuple[Tensor, int]] = DistributedSampler(
            images, machine.count, machine.rank, seed=settings.seed
        )
        sampler.set_epoch(epoch)
        loaded = batches("training", images, machine, batch_size=settings.batch // machine.count, sampler=sampler)
        for x, labels in loaded:
            with torch.autocast(machine.device.type, enabled=settings.amp):
                logits = shared(x)
            yield F.cross_entropy(logits.float(), labels)

    optimizer = nesterov(model, settings)
    schedule = StepLR(optimizer, settings.step, settings.gamma)
    state = path.with_name(f"{content_hash(asdict(settings), train.sha256, val.sha256)[:32]}.part")
    selection = Selection(
        model.encoder, lambda: validation(model.encoder), lambda: save_encoder(path, model.encoder, "pretrained")
    )
    Training(
        model,
        [optimizer],
        losses,
        settings.epochs,
        state,
        [schedule],
        selection=selection,
        amp=settings.amp,
        machine=machine,
    ).run(on_epoch)


@torch.no_grad()
def feature_maps(encoder: ResNet12, images: Tensor, settings: Pretraining) -> Tensor:
    """Feature maps of resized images without augmentation: ``(n, channels, height, width)``."""
    return torch.cat([encoder(settings.resized(part)) for part in images.split(256)])


def cached_feature_maps(encoder: ResNet12, images: Tensor, settings: Pretraining, cache: Cache) -> Tensor:
    """``feature_maps``, computed once for these weights and images."""
    weights = [x.numpy() for x in encoder.state_dict().values()]
    key = content_hash(*weights, images.numpy(), settings.side, torch.__version__)
    return cache.tensors("features", key, lambda: {"maps": feature_maps(encoder, images, settings)})["maps"]
