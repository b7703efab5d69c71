"""PatchCT's model: a refined global feature scored against label embeddings, patches transported to labels in training.

After the framework figure of the paper: the global feature passes an adaptive layer with a residual connection,
v = x + AL(x), and is compared with every label embedding t_c; transport between patches and labels is added to the
classification loss and plays no part in testing. Scale, offset and loss are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.multi_label.losses import asymmetric_loss, binary_cross_entropy
from reproductions.multi_label.tokens import Tokens
from reproductions.patchct.transport import Transport, cosines

Readout = Literal["global", "max", "cross-attention"]
Loss = Literal["bce", "asl"]
LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"bce": binary_cross_entropy, "asl": asymmetric_loss}

SCALE, OFFSET = 10.0, -3.0  # of the cosines in the logits, to start from: few of the labels are present


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a model is made with.

    Attributes:
        readout: "global" scores v; "max" each label's best patch; "cross-attention" what a query of each label finds
            among the patches (one decoder layer, as Query2Label).
        adaptive: whether v passes the adaptive layer.
        loss: "bce", or "asl", the asymmetric loss.
        train_labels: whether the label embeddings are trained, or stay what the text tower says.
    """

    transport: Transport = field(default_factory=Transport)
    readout: Readout = "global"
    adaptive: bool = True
    loss: Loss = "bce"
    train_labels: bool = True


class AdaptiveLayer(nn.Module):
    """V = x + AL(x), a small network with a residual connection, ``(B, d)`` → ``(B, d)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class CrossAttention(nn.Module):
    """Query2Label's readout: label queries attend to the patches, and each label has a linear score of its own."""

    def __init__(self, labels: int, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.score = nn.Parameter(torch.randn(labels, dim) / math.sqrt(dim))

    def forward(self, queries: Tensor, patches: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits ``(B, C)`` and attention ``(B, N, C)`` of queries ``(C, d)``."""
        q, away = queries.expand(len(patches), -1, -1), None if mask is None else ~mask
        found, attention = self.attend(self.before(q), patches, patches, key_padding_mask=away)
        h = q + found
        h = h + self.mix(self.after(h))
        return (h * self.score).sum(-1), attention.mT


class PatchCT(nn.Module):
    """An encoder, label embeddings, a readout and the transport between the two sets.

    Args:
        encoder: images → ``Tokens``.
        labels: the label embeddings t ``(C, d)`` to start from.
        settings: the switches.
    """

    def __init__(self, encoder: nn.Module, labels: Tensor, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.embeddings = nn.Parameter(labels.clone(), requires_grad=settings.train_labels)
        count, dim = labels.shape
        self.adaptive = AdaptiveLayer(dim) if settings.adaptive and settings.readout == "global" else nn.Identity()
        self.attention = CrossAttention(count, dim) if settings.readout == "cross-attention" else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.offset = nn.Parameter(torch.tensor(OFFSET))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.transport.temperature)))
        # several processes average the gradients of all that is trained: each needs one
        self.log_scale.requires_grad_(self.attention is None)
        self.log_temperature.requires_grad_(settings.transport.kind == "ct")

    def logits(self, tokens: Tensor | Tokens) -> Tensor:
        """One logit a label, ``(B, C)``."""
        whole, layers, mask = tokens
        if self.attention is not None:
            return self.attention(self.embeddings, layers[-1], mask)[0] + self.offset
        if self.settings.readout == "max":
            s = cosines(layers[-1], self.embeddings)
            s = s if mask is None else s.masked_fill(~mask.unsqueeze(-1), -torch.inf)
            return self.log_scale.exp() * s.amax(-2) + self.offset
        v = F.normalize(self.adaptive(whole), dim=-1)
        return self.log_scale.exp() * v @ F.normalize(self.embeddings, dim=-1).mT + self.offset

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """The classification loss, plus λ times the transport cost averaged over layers and images.

        Args:
            images: what the encoder takes.
            targets: ``(B, C)``: 1 present, 0 absent, −1 left out.
        """
        tokens: Tokens = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):  # in mixed precision the encoder alone runs in half
            return self._loss(tokens, targets)

    def _loss(self, tokens: Tokens, targets: Tensor) -> Tensor:
        logits = self.logits(tokens)
        loss = LOSSES[self.settings.loss](logits, targets)
        transport = self.settings.transport
        if transport.kind == "none":
            return loss
        beta = transport.label_weights(targets, logits.sigmoid())
        tau = self.log_temperature.exp()
        costs = [
            transport.cost(tokens.layers[layer], self.embeddings, beta, tau, tokens.mask).mean()
            for layer in transport.layers
        ]
        return loss + transport.weight * torch.stack(costs).mean()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The loss; what wraps the model for several processes calls it."""
        return self.loss(images, targets)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Probabilities ``(B, C)``."""
        return self.logits(self.encoder(images)).sigmoid()

    @torch.no_grad()
    def weights(self, images: Tensor) -> Tensor:
        """Each label's own weights over the last layer's patches, ``(B, N, C)``, columns sum to 1.

        Those of the plan; of the attention; of the best patch alone; or all alike, where nothing but a mean is read.
        """
        tokens: Tokens = self.encoder(images)
        patches = tokens.layers[-1]
        if self.attention is not None:
            return self.attention(self.embeddings, patches, tokens.mask)[1]
        if self.settings.transport.kind != "none":
            return self.settings.transport.weights(patches, self.embeddings, self.log_temperature.exp(), tokens.mask)
        s = cosines(patches, self.embeddings)
        there = torch.ones_like(s[..., :1]) if tokens.mask is None else tokens.mask.unsqueeze(-1).to(s)
        if self.settings.readout == "max":
            return F.one_hot(s.masked_fill(there == 0, -torch.inf).argmax(-2), s.shape[-2]).mT.to(s)
        return (there / there.sum(-2, keepdim=True)).expand_as(s)

    @torch.no_grad()
    def similarity_weights(self, images: Tensor, temperature: float) -> Tensor:
        """The softmax over patches of the cosines at one temperature, whatever the readout, ``(B, N, C)``."""
        tokens: Tokens = self.encoder(images)
        return (cosines(tokens.layers[-1], self.embeddings) / temperature).softmax(-2)
