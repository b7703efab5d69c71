"""Knowledge-constrained optimal transport (KCOT): the plan between the regions of an image and the labels.

Notation as in the paper: sim_nc is the cosine of region n and label c, κ CLIP's logit scale, u and v the marginals,
P̃ the teacher's prior, λ₁ and λ₂ the weights of the entropy and of the prior.
Shapes: B images, N regions, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from solvers import TransportProblem, solve

Floor = Literal["image", "batch"]


def cost(sim: Tensor, kappa: float) -> Tensor:
    """C_nc = 1 − softmax_c(κ sim_nc): one minus the probability of the label in that region, ``(B, N, C)``."""
    return 1 - (kappa * sim).softmax(-1)


def region_weights(sim: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """u_n = softmax_n(max_c sim_nc / temperature): regions that resemble some label carry more mass, ``(B, N)``."""
    resembling = sim.amax(-1) / temperature
    return (resembling if mask is None else resembling.masked_fill(~mask, -torch.inf)).softmax(-1)


def teacher_prior(sim: Tensor, targets: Tensor, kappa: float, sharpening: float, floor: Floor = "image") -> Tensor:
    """P̃_nc = softmax_n(s q_nc) with q_nc = softmax_c(κ sim_nc), and a floor for the labels that are absent.

    Args:
        sim: cosines of the frozen tower's regions and labels, ``(B, N, C)``.
        targets: ``(B, C)``; where it is 0 the column becomes the floor.
        kappa: the frozen tower's.
        sharpening: s.
        floor: the least P̃ of the image; or, as published, of the whole batch, which makes an image's plan depend on
            the images beside it.

    Returns:
        ``(B, N, C)``, positive.
    """
    P = (sharpening * (kappa * sim).softmax(-1)).softmax(-2)
    lowest = P.amin((-2, -1), keepdim=True) if floor == "image" else P.amin()
    return torch.where((targets == 0)[:, None, :], lowest, P)


@dataclass(frozen=True)
class Kcot:
    """Settings of the plan, to the published values; each image's plan is its own.

    Attributes:
        reg: λ₁.
        prior_weight: λ₂; with a prior the plan's ε is λ₁ + λ₂.
        temperature: of the region weights.
        sharpening: of the teacher's prior.
        floor: of the teacher's prior: see ``teacher_prior``.
        uniform: all regions weigh the same, instead of ``region_weights``.
        iterations: of Sinkhorn; None until the marginal error is below ``tolerance``, which is where a plan is
            defined. The published loop stops at a change of its scalings, with an error of some 10⁻³.
        tolerance: the marginal error, as a fraction of the mass.
    """

    reg: float = 0.1
    prior_weight: float = 0.05
    temperature: float = 0.1
    sharpening: float = 20.0
    floor: Floor = "image"
    uniform: bool = False
    iterations: int | None = None
    tolerance: float = 1e-5

    @torch.no_grad()
    def plan(self, sim: Tensor, kappa: float, prior: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """T* = argmin ⟨T, C⟩ + λ₁ Σ T (log T − 1) + λ₂ KL(T‖P̃) with T 1 = u and Tᵀ 1 = 1/C, without a graph.

        Args:
            sim: cosines, ``(B, N, C)``, in float32 or float64.
            kappa: κ.
            prior: P̃ > 0, ``(B, N, C)``; None for no teacher, as at test time.
            mask: bool ``(B, N)``, False for regions that are padding and carry no mass.

        Returns:
            ``(B, N, C)``, of total mass 1 for each image.
        """
        u = None
        if mask is not None:
            sim = sim.masked_fill(~mask.unsqueeze(-1), -1)
            u = mask / mask.sum(-1, keepdim=True).to(sim)
        if not self.uniform:
            u = region_weights(sim, self.temperature, mask)
        settings: dict[str, Any] = {"reg": self.reg, "tolerance": self.tolerance}
        if self.iterations is not None:
            settings |= {"tolerance": 1e-30, "max_iterations": self.iterations}
        if prior is not None:
            settings |= {"prior": prior, "prior_weight": self.prior_weight}
        T = solve(TransportProblem(cost(sim, kappa), u), "sinkhorn", **settings).plan
        assert isinstance(T, Tensor)
        return T
