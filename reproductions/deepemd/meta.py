"""Meta-training: the encoder learns from few-shot episodes, with the exact gradient of the earth mover's distance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import save_encoder
from reproductions.deepemd.descent import FileDescent, nesterov
from reproductions.deepemd.embedding import Embedding
from reproductions.deepemd.loading import EpisodeImages, draw_episodes
from reproductions.deepemd.validation import episode_logits, make_validation
from reproductions.loading import batches, seed_of
from reproductions.machine import Machine
from reproductions.storage import content_hash
from reproductions.training import OnEpoch, Selection, Training


@dataclass(frozen=True, kw_only=True)
class MetaTraining(FileDescent):
    """Settings of meta-training on 1-shot episodes, by default the paper's.

    Attributes:
        steps: of an epoch; each takes one episode, or one of every process.
    """

    epochs: int = 100
    steps: int = 50
    lr: float = 5e-4
    step: int = 10
    gamma: float = 0.5
    validation: int = 1000


def meta_train(
    encoder: ResNet12,
    train: ImageFiles,
    val: ImageFiles,
    embedding: Embedding,
    settings: MetaTraining,
    path: Path,
    machine: Machine,
    on_epoch: OnEpoch = lambda epoch: None,
) -> None:
    """Train a pre-trained encoder on; ``path`` gets that of the best epoch on validation episodes.

    The gradient reaches the features through the cost, by the optimal flow, and through the weights, by the dual
    potentials; officially, with OpenCV, through the cost alone. Batch normalisation takes the statistics of all images
    of an episode. With several processes each takes an episode of its own and the gradients are averaged: a step is on
    as many tasks. Officially it is on one, whose images are spread over the devices, so that batch normalisation sees
    only a share of them.

    Raises:
        UserError: a split is too small, or an image is broken.
    """
    validation = make_validation(val, embedding, settings, machine)
    draw_episodes(train, settings.way, settings.queries, 1, settings.seed)  # refuses a small split before the work
    start = content_hash(*(x.cpu().numpy() for x in encoder.state_dict().values()))
    key = content_hash(asdict(settings), asdict(embedding), train.sha256, val.sha256, start)
    shared = machine.share(encoder)

    def losses(epoch: int, _: int) -> Iterator[Tensor]:
        seed = seed_of(settings.seed, epoch)
        drawn = draw_episodes(train, settings.way, settings.queries, settings.steps * machine.count, seed)
        images = EpisodeImages(train, embedding.transform, drawn, train=True, seed=seed)
        own = range(machine.rank, len(drawn), machine.count)
        for k, patches in zip(own, batches("training", images, machine, batch_size=None, sampler=own), strict=True):
            logits = episode_logits(shared, embedding, patches, settings.way, settings.amp)
            yield F.cross_entropy(logits, drawn[k].labels.to(machine.device))

    optimizer = nesterov(encoder, settings)
    schedule = StepLR(optimizer, settings.step, settings.gamma)
    state = path.with_name(f"{key[:32]}.part")
    selection = Selection(encoder, lambda: validation(encoder), lambda: save_encoder(path, encoder, "meta"))
    Training(
        encoder,
        [optimizer],
        losses,
        settings.epochs,
        state,
        [schedule],
        selection=selection,
        amp=settings.amp,
        machine=machine,
    ).run(on_epoch)
