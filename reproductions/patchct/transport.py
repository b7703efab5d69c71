"""The regulariser of PatchCT: what it costs to transport an image's patches to its labels.

An image is a mixture of patches P = Σ_n δ(x_n)/N, its labels a mixture Q = Σ_c β_c δ(t_c), at each chosen layer. With
affinity s = cos(x_n, t_c) and cost 1 − cos, conditional transport charges

    L_f = (1/N) Σ_n Σ_c π_f(c|n) (1 − s_nc),   L_b = Σ_c β_c Σ_n π_b(n|c) (1 − s_nc),   L_CT = ρ L_f + (1 − ρ) L_b

(Zheng and Zhou, NeurIPS 2021; the navigators are those of ``solvers.conditional_transport``). The paper's figure fixes
the two sets; which labels Q holds, the layers, ρ, the temperature and the cost could not be found: each is a switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers import TransportProblem, solve
from solvers.conditional_transport import conditional_transport_features

Kind = Literal["none", "ct", "ot"]
LabelSet = Literal["positives", "all", "predicted"]


@dataclass(frozen=True, kw_only=True)
class Transport:
    """The switches of the regulariser; what could not be found in the paper is our choice.

    Attributes:
        kind: "ct" conditional transport, "ot" entropic optimal transport of the same sets and cost, or "none".
        rho: ρ, the share of L_f: 1 forward only, 0 backward only.
        label_set: β is uniform over the image's "positives" or over "all" labels, or proportional to the "predicted"
            probabilities (without a gradient).
        layers: whose patches are transported, as positions in the encoder's layers (of a CLIP its blocks), from the
            end where negative; the terms are averaged.
        weight: λ.
        temperature: τ of the navigators to start from; it is learned.
        reg: ε of optimal transport.
    """

    kind: Kind = "ct"
    rho: float = 0.5
    label_set: LabelSet = "positives"
    layers: tuple[int, ...] = (-1,)
    weight: float = 1.0
    temperature: float = 0.1
    reg: float = 0.05

    def label_weights(self, targets: Tensor, probabilities: Tensor) -> Tensor:
        """β ``(B, C)`` of each image, of sum 1, or 0 for an image without labels.

        Args:
            targets: ``(B, C)``, 1 for the labels that are present.
            probabilities: of the labels as predicted, ``(B, C)``.
        """
        if self.label_set == "all":
            return torch.full_like(probabilities, 1 / probabilities.shape[-1])
        mass = (targets > 0).to(probabilities) if self.label_set == "positives" else probabilities.detach()
        return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)

    def cost(self, patches: Tensor, labels: Tensor, beta: Tensor, tau: Tensor, mask: Tensor | None = None) -> Tensor:
        """The transport cost of each image, ``(B,)``; 0 where β is.

        Args:
            patches: x, ``(B, N, d)``.
            labels: t, ``(C, d)``.
            beta: β ``(B, C)``.
            tau: τ, of shape ``()``.
            mask: bool ``(B, N)``, False for patches that are padding.
        """
        there = beta.sum(-1) > 0
        uniform = torch.full_like(beta, 1 / beta.shape[-1])
        beta = torch.where(there.unsqueeze(-1), beta, uniform)  # of no consequence
        if self.kind == "ct":
            found = conditional_transport_features(
                patches, labels, "cosine", "cosine", beta=beta, temperature=tau, rho=self.rho, mask_x=mask
            ).loss
        else:
            cost = 1 - cosines(patches, labels)
            plan = self._optimal(cost.detach(), beta, mask)
            found = (plan * cost).sum((-2, -1))  # the envelope theorem: the plan is held
        return torch.where(there, found, 0)

    def weights(self, patches: Tensor, labels: Tensor, tau: Tensor, mask: Tensor | None = None) -> Tensor:
        """Each label's share of the plan, all labels alike, ``(B, N, C)``: columns sum to 1."""
        beta = torch.full((len(patches), len(labels)), 1 / len(labels)).to(patches)
        if self.kind == "ct":
            found = conditional_transport_features(
                patches, labels, "cosine", "cosine", beta=beta, temperature=tau, rho=self.rho, mask_x=mask
            ).plan
        else:
            found = self._optimal(1 - cosines(patches, labels), beta, mask)
        return found / found.sum(-2, keepdim=True)

    def _optimal(self, cost: Tensor, beta: Tensor, mask: Tensor | None) -> Tensor:
        theta = None if mask is None else mask / mask.sum(-1, keepdim=True).to(cost)
        plan = solve(TransportProblem(cost, theta, beta), "sinkhorn", reg=self.reg, max_iterations=100).plan
        assert isinstance(plan, Tensor)
        return plan


def cosines(x: Tensor, t: Tensor) -> Tensor:
    """S_nc = cos(x_n, t_c), shape ``(B, N, C)``, of ``(B, N, d)`` and ``(C, d)``."""
    return F.normalize(x, dim=-1) @ F.normalize(t, dim=-1).mT
