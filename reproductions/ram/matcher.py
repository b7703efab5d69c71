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

    def plan(self, sim: Tensor, prior: Tensor | None = None) -> Tensor:
        """T ``(B, N, C)`` of cosines ``(B, N, C)``, columns adding up to 1/C, without a graph."""
        sim, (N, C) = sim.detach(), sim.shape[-2:]
        if self.matching == "pooling":
            return torch.full_like(sim, 1 / (N * C))
        if self.matching == "attention":
            return (self.kappa * sim).softmax(-2) / C
        return self.kcot.plan(sim, self.kappa, prior)

    @torch.no_grad()
    def prior(self, regions: Tensor, text: Tensor, targets: Tensor) -> Tensor:
        """The teacher's P̃ ``(B, N, C)`` of the frozen tower's regions ``(B, N, d)`` and texts ``(C, d)``."""
        with torch.autocast(text.device.type, enabled=False):
            x, t = unit(regions), unit(text)
            return teacher_prior(x @ t.mT, targets, self.kappa, self.kcot.sharpening, self.kcot.floor)

    def forward(self, image: Tensor, regions: Tensor, text: Tensor, prior: Tensor | None = None) -> Logits:
        """g_c = ⟨x, t_c⟩/τ_g and z_c = Σ_n T_nc sim_nc / τ_l with sim_nc = ⟨x_n, t_c⟩.

        Args:
            image: ``(B, d)``; this and the next two need not be normalised.
            regions: ``(B, N, d)``.
            text: ``(C, d)``.
            prior: the teacher's, ``(B, N, C)``.
        """
        with torch.autocast(text.device.type, enabled=False):
            x, x_n, t = unit(image), unit(regions), unit(text)
            sim = x_n @ t.mT
            z = (self.plan(sim, prior) * sim).sum(-2)
            return Logits(x @ t.mT / self.log_tau_global.exp(), z / self.log_tau_local.exp())


def unit(features: Tensor) -> Tensor:
    """Features at unit length, in float32, or in float64 where they are."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


def score(logits: Logits) -> Tensor:
    """(softmax_c(g) + softmax_c(z))/2, ``(B, C)``."""
    return (logits.g.softmax(-1) + logits.z.softmax(-1)) / 2
