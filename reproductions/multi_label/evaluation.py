"""Scores of a model on the images of a split, by one process or by several."""

from __future__ import annotations

import torch
from torch import Tensor

from reproductions.loading import batches
from reproductions.machine import Machine
from reproductions.multi_label.augmentation import whole_image
from reproductions.multi_label.configuration import Settings
from reproductions.multi_label.loading import LabelledImages, ScoredImages
from reproductions.multi_label.training import MultiLabelModel


@torch.no_grad()
def scores(model: MultiLabelModel, images: LabelledImages, settings: Settings, machine: Machine) -> Tensor:
    """Scores ``(n, C)`` on the CPU, in the order of the images, never in mixed precision.

    Each of several processes scores its share, and has the scores of all at the end. The model is left in evaluation
    mode, on the machine's device.

    Raises:
        UserError: an image is missing or broken.
    """
    model.to(machine.device)
    model.eval()
    n = len(images)
    rows = -(-n // machine.count)
    # shares of one size: what is missing from the last ones is scored twice, and left out below
    own = [i % n for i in range(machine.rank, rows * machine.count, machine.count)]
    dataset = ScoredImages(images, whole_image(settings))
    loaded = batches("testing", dataset, machine, sampler=own, batch_size=settings.test_batch)
    share = torch.cat([model.scores(x).cpu() for x in loaded])
    return torch.stack(machine.gathered(share), dim=1).flatten(0, 1)[:n]
