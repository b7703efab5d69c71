"""From features to logits and scores: cosines, the plan between regions and labels, and two temperatures.

Notation as in the paper: x are unit features of regions and of the image, t of labels, τ_l and τ_g the temperatures.
Shapes: B images, N regions, C labels, d dimensions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.ram.kcot import teacher_prior
from reproductions.ram.settings import RamSettings
from solvers.conditional_transport import conditional_transport


class Logits(NamedTuple):
    """Global logits g and local logits z, ``(B, C)`` each."""

    g: Tensor
    z: Tensor


class Matcher(nn.Module):
    """Everything behind the towers; in float32 also under mixed precision, or in float64.

    Args:
        settings: of which ``matching``, ``kcot`` and ``tau_local`` count.
        kappa: κ of CLIP; τ_g starts at 1/κ.
    """

    def __init__(self, settings: RamSettings, kappa: float) -> None:
        super().__init__()
        self.matching, self.kappa = settings.matching, kappa
        self.kcot = replace(settings.kcot, uniform=True) if settings.matching == "ot" else settings.kcot
        # by their logarithms: an optimiser's step on τ itself can carry it to 0 and beyond
        self.log_tau_local = nn.Parameter(torch.tensor(math.log(settings.tau_local)))
        self.log_tau_global = nn.Parameter(torch.tensor(-math.log(kappa)))

    @torch.no_grad()
    def plan(self, sim: Tensor, prior: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """T ``(B, N, C)`` of cosines ``(B, N, C)``, of mass 1 for each image, without a graph."""
        C = sim.shape[-1]
        if self.matching in ("ot", "kcot"):
            return self.kcot.plan(sim, self.kappa, prior, mask)
        if self.matching == "ct":
            return conditional_transport(sim, 1 - sim, temperature=1 / self.kappa, mask_x=mask).plan
        there = torch.ones_like(sim[..., 0], dtype=torch.bool) if mask is None else mask
        seen = sim.masked_fill(~there.unsqueeze(-1), -torch.inf)
        if self.matching == "max":
            return F.one_hot(seen.argmax(-2), sim.shape[-2]).mT.to(sim) / C
        if self.matching == "attention":
            return (self.kappa * seen).softmax(-2) / C
        there = there.to(sim)
        return (there / there.sum(-1, keepdim=True)).unsqueeze(-1).expand_as(sim) / C

    @torch.no_grad()
    def prior(self, regions: Tensor, text: Tensor, targets: Tensor) -> Tensor:
        """The teacher's P̃ ``(B, N, C)`` of the frozen tower's regions ``(B, N, d)`` and texts ``(C, d)``."""
        with torch.autocast(text.device.type, enabled=False):
            x, t = unit(regions), unit(text)
            return teacher_prior(x @ t.mT, targets, self.kappa, self.kcot.sharpening, self.kcot.floor)

    def forward(
        self, image: Tensor, regions: Tensor, text: Tensor, prior: Tensor | None = None, mask: Tensor | None = None
    ) -> Logits:
        """g_c = ⟨x, t_c⟩/τ_g and z_c = Σ_n T_nc sim_nc / τ_l with sim_nc = ⟨x_n, t_c⟩.

        Args:
            image: ``(B, d)``; this and the next two need not be normalised.
            regions: ``(B, N, d)``.
            text: ``(C, d)``.
            prior: the teacher's, ``(B, N, C)``.
            mask: bool ``(B, N)``, False for regions that are padding.
        """
        with torch.autocast(text.device.type, enabled=False):
            x, x_n, t = unit(image), unit(regions), unit(text)
            sim = x_n @ t.mT
            z = (self.plan(sim, prior, mask) * sim).sum(-2)
            return Logits(x @ t.mT / self.log_tau_global.exp(), z / self.log_tau_local.exp())


def unit(features: Tensor) -> Tensor:
    """Features at unit length, in float32, or in float64 where they are."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


def score(logits: Logits) -> Tensor:
    """(softmax_c(g) + softmax_c(z))/2, ``(B, C)``."""
    return (logits.g.softmax(-1) + logits.z.softmax(-1)) / 2
