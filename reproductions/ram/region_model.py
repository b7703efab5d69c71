"""RAM behind any encoder of regions: the matching, the losses and, where regions form a grid, the local adapter.

What the small data sets are measured with, where the towers of CLIP are not at hand.
Shapes: B images, N regions, C labels, d the common dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproductions.multi_label.tokens import Tokens
from reproductions.ram.adapter import LadderAdapter
from reproductions.ram.matcher import Logits, Matcher, score
from reproductions.ram.mmc_loss import mmc_loss
from reproductions.ram.settings import RamSettings


class RegionModel(nn.Module):
    """An encoder of regions, text vectors of seen and then unseen labels, and RAM's matching of the two.

    Args:
        encoder: images → ``Tokens`` of dimension d.
        text: T of all labels, ``(C, d)``; a parameter is trained, a plain tensor is not.
        seen: how many labels, the first ones, training knows.
        settings: of which ``matching``, ``teacher``, ``adapter``, ``kcot`` and ``tau_local`` count. The teacher is the
            encoder without the adapter, so that one has no effect without the other.
        kappa: κ; τ_g starts at 1/κ.
    """

    text: Tensor

    def __init__(self, encoder: nn.Module, text: Tensor, seen: int, settings: RamSettings, kappa: float) -> None:
        super().__init__()
        self.encoder, self.seen, self.settings = encoder, seen, settings
        if isinstance(text, nn.Parameter):
            self.text = text
        else:
            self.register_buffer("text", text.clone())
        self.adapter = LadderAdapter(text.shape[1], text.shape[1]) if settings.adapter else None
        self.matcher = Matcher(settings, kappa)

    def logits(self, images: Tensor, text: Tensor, targets: Tensor | None = None) -> Logits:
        """Global and local logits ``(B, C)`` of the labels with these vectors; with targets, by the training plan."""
        whole, layers, mask = self.encoder(images)
        regions = self.regions(layers[-1], text)
        prior = None
        if targets is not None and self.settings.teacher:
            prior = self.matcher.prior(layers[-1].detach(), text, targets)
        return self.matcher(whole, regions, text, prior, mask)

    def regions(self, patches: Tensor, text: Tensor) -> Tensor:
        """Regions ``(B, N, d)``, once the adapter has told them of the text."""
        if self.adapter is None:
            return patches
        side = round(patches.shape[1] ** 0.5)
        return patches + self.adapter(patches, text, (side, side))

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """L(g) + L(z) over the seen labels; targets ``(B, seen)``."""
        g, z = self.logits(images, self.text[: self.seen], targets)
        return mmc_loss(g, targets) + mmc_loss(z, targets)

    @torch.no_grad()
    def scores(self, images: Tensor, candidates: slice = slice(None)) -> Tensor:
        """(softmax(g) + softmax(z))/2 of the candidates, ``(B, C)``."""
        return score(self.logits(images, self.text[candidates]))

    @torch.no_grad()
    def weights(self, images: Tensor, candidates: slice = slice(None)) -> Tensor:
        """Each candidate's share of the plan over the regions, ``(B, N, C)``: columns sum to 1."""
        found: Tokens = self.encoder(images)
        text = self.text[candidates]
        x, t = (nn.functional.normalize(f, dim=-1) for f in (self.regions(found.layers[-1], text), text))
        plan = self.matcher.plan(x @ t.mT, mask=found.mask)
        return plan / plan.sum(-2, keepdim=True)
