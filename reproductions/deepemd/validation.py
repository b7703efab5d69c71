"""Which epoch is best: accuracy of an encoder on fixed episodes of the validation classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reproductions.datasets.image_files import ImageFiles
from reproductions.deepemd.descent import FileDescent
from reproductions.deepemd.embedding import Embedding
from reproductions.deepemd.loading import EpisodeImages, draw_episodes
from reproductions.deepemd.method import NodeMatching
from reproductions.loading import batches, seed_of
from reproductions.machine import Machine
from reproductions.metrics import few_shot_accuracy

OWN = 2**32 - 1
"""What sets the validation's random numbers apart from those of every epoch."""


def episode_logits(encoder: nn.Module, embedding: Embedding, patches: Tensor, way: int, amp: bool = False) -> Tensor:
    """Logits ``(queries, way)`` of a 1-shot episode by the exact EMD, whose support images come first.

    The encoder may run in mixed precision, the matching never does.
    """
    with torch.autocast(patches.device.type, enabled=amp):
        nodes = embedding(encoder, patches)
    prototype, query = nodes.float().split([way, len(nodes) - way])
    return NodeMatching().logits(query, prototype)


@dataclass(frozen=True, eq=False)
class Validation:
    """Mean accuracy in percent over the same 1-shot episodes, and patches, every time."""

    images: EpisodeImages
    embedding: Embedding
    machine: Machine

    @torch.no_grad()
    def __call__(self, encoder: nn.Module) -> float:
        encoder.eval()
        accuracies = []
        loaded = batches("validating", self.images, self.machine, batch_size=None)
        for patches, episode in zip(loaded, self.images.drawn, strict=True):
            logits = episode_logits(encoder, self.embedding, patches, len(episode.support))
            accuracies.append(few_shot_accuracy(logits, episode.labels.to(logits.device)))
        return torch.stack(accuracies).mean().item()


def make_validation(val: ImageFiles, embedding: Embedding, settings: FileDescent, machine: Machine) -> Validation:
    """The validation on episodes of this split, the same for every epoch.

    Raises:
        UserError: the split is too small for them.
    """
    seed = seed_of(settings.seed, OWN)
    drawn = draw_episodes(val, settings.way, settings.queries, settings.validation, seed)
    return Validation(EpisodeImages(val, embedding.transform, drawn, train=False, seed=seed), embedding, machine)
