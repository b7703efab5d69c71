"""The structured fully-connected layer: a class is a set of nodes learned from its few support images.

DeepEMD, section 3.5 (Algorithm 1 of the journal version): from the mean of a class's support nodes, stochastic gradient
descent on the cross entropy of the support images themselves, with the encoder fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.deepemd.method import (
    TEMPERATURE,
    centred_unit,
    cross_reference_weights,
    flow_of,
    scaled,
)


@dataclass(frozen=True)
class StructuredLayer:
    """How the layer Φ is fitted.

    Attributes:
        lr: step size of SGD: 100 when the official code tests, 0.1 at the end of its training.
        passes: over the support images, each in a new random order.
        batch: images a step.
        momentum, dampening: of SGD.
    """

    lr: float = 100.0
    passes: int = 100
    batch: int = 4
    momentum: float = 0.9
    dampening: float = 0.9

    def fitted(self, support: Tensor, labels: Tensor, orders: Sequence[Tensor]) -> Tensor:
        """Φ of each episode; the flow is held fixed while the cost is differentiated, as on the official test path.

        Args:
            support: nodes ``(E, S, N, C)`` of E episodes.
            labels: ``(S,)``, 0 … way − 1, each as often; the same for all episodes.
            orders: for each episode the orders of its passes, ``(passes, S)``; see ``random_orders``.

        Returns:
            Φ ``(E, way, N, C)``.
        """
        way = int(labels.max()) + 1
        shot = labels.bincount().max()
        members = torch.stack([(labels == k).nonzero()[:shot, 0] for k in range(way)])
        phi = support[:, members].mean(2).detach().clone().requires_grad_()
        u, mean = centred_unit(support), support.mean(-2)
        optimizer = torch.optim.SGD([phi], self.lr, momentum=self.momentum, dampening=self.dampening)
        episode = torch.arange(len(support))[:, None]
        for order in torch.stack(list(orders), 1):  # one pass: (E, S)
            for index in order.split(self.batch, dim=1):
                images, unit = support[episode, index], u[episode, index]
                S = torch.einsum("eqnc,ewmc->eqwnm", unit, centred_unit(phi))
                with torch.no_grad():
                    s, d = cross_reference_weights(images, phi, mean[episode, index])
                    flow = flow_of(S, scaled(s), scaled(d))
                logits = TEMPERATURE / support.shape[-2] * (S * flow).sum((-2, -1))
                loss = F.cross_entropy(logits.flatten(0, 1), labels[index].flatten(), reduction="sum") / index.shape[1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return phi.detach()


def random_orders(passes: int, images: int, generator: torch.Generator | None = None) -> Tensor:
    """An order of the support images for every pass, ``(passes, images)``, drawn one after the other."""
    return torch.stack([torch.randperm(images, generator=generator) for _ in range(passes)])
