"""DeepEMD's metric: images as sets of nodes, compared by the earth mover's distance between them.

Notation as in the paper: u_i are the nodes of a query image, v_j those of a class prototype, s_i and d_j their weights,
c_ij = 1 − cos(u_i, v_j) the cost, x̃_ij the optimal flow; the logit is the temperature times Σ_ij (1 − c_ij) x̃_ij.
Shapes: Q queries, W classes (way), N and M nodes, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers import Solution, TransportProblem, solve

TEMPERATURE = 12.5


def nodes(maps: Tensor) -> Tensor:
    """Feature maps ``(B, C, H, W)`` as sets of nodes ``(B, H·W, C)``, row by row."""
    return maps.flatten(2).mT


def cross_reference_weights(query: Tensor, prototype: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Node weights from the other image's mean: s_i = max(u_i · v̄, 0) + 10⁻³, and d_j likewise.

    Args:
        query: uncentred nodes ``(…, Q, N, C)``.
        prototype: uncentred nodes ``(…, W, M, C)``.
        mean: mean query nodes ``(…, Q, C)``, where they are known already.

    Returns:
        s ``(…, Q, W, N)`` and d ``(…, Q, W, M)``, not yet scaled to a common total.
    """
    s = torch.einsum("...qnc,...wc->...qwn", query, prototype.mean(-2))
    d = torch.einsum("...wmc,...qc->...qwm", prototype, query.mean(-2) if mean is None else mean)
    return F.relu(s) + 1e-3, F.relu(d) + 1e-3


def centred_unit(x: Tensor) -> Tensor:
    """Nodes minus the mean of their channels, at unit length."""
    return F.normalize(x - x.mean(-1, keepdim=True), dim=-1)


def similarity(query: Tensor, prototype: Tensor) -> Tensor:
    """Cosine of nodes centred over their channels: ``(…, Q, N, C)``, ``(…, W, M, C)`` → ``(…, Q, W, N, M)``."""
    return torch.einsum("...qnc,...wmc->...qwnm", centred_unit(query), centred_unit(prototype))


def scaled(weights: Tensor) -> Tensor:
    """Weights with total mass N, the number of nodes; the official OpenCV path adds 10⁻⁵ first."""
    weights = F.relu(weights) + 1e-5
    return weights * (weights.shape[-1] / weights.sum(-1, keepdim=True))


def flow_of(S: Tensor, s: Tensor, d: Tensor) -> Tensor:
    """The exact flow x̃ of the cost 1 − S between scaled weights, without a gradient."""
    x = solve(TransportProblem(1 - S.detach(), s, d), "emd").plan
    assert isinstance(x, Tensor)
    return x


@dataclass(frozen=True)
class NodeMatching:
    """How the nodes of a query and of a prototype are matched.

    Attributes:
        solver: registry name of a transport solver, or of an assignment solver for uniform weights.
        weights: "cross_reference" as in the paper, or "uniform".
        settings: of the solver.
    """

    solver: str = "emd"
    weights: Literal["cross_reference", "uniform"] = "cross_reference"
    settings: dict[str, Any] = field(default_factory=dict)

    def solution(self, query: Tensor, prototype: Tensor, S: Tensor) -> Solution:
        """The optimal flow of every (query, class) pair, in one batched call."""
        if self.weights == "uniform":
            ones = torch.ones((), dtype=S.dtype, device=S.device)
            problem = TransportProblem(1 - S, ones.expand(S.shape[:-1]), ones.expand(*S.shape[:-2], S.shape[-1]))
        else:
            s, d = cross_reference_weights(query, prototype)
            problem = TransportProblem(1 - S, scaled(s), scaled(d))
        if self.solver == "jonker_volgenant":
            return solve(problem.to_assignment(), self.solver, **self.settings)
        return solve(problem, self.solver, **self.settings)

    def logits(self, query: Tensor, prototype: Tensor) -> Tensor:
        """T/N · Σ_ij (1 − c_ij) x̃_ij of uncentred nodes: ``(…, Q, N, C)``, ``(…, W, N, C)`` → ``(…, Q, W)``.

        The total mass is N, so this is T (1 − V/N) with the optimal cost V, which carries the gradient to the
        features through the cost and, by the dual potentials, through the weights.
        """
        S = similarity(query, prototype)
        total = S.shape[-2]
        value = self.solution(query, prototype, S).value.to(S.dtype)
        return TEMPERATURE * (1 - value / total)


def pooled_logits(query: Tensor, prototype: Tensor, metric: Literal["cosine", "euclidean"]) -> Tensor:
    """The baselines without structure: mean-pooled nodes by cosine, or by minus the squared Euclidean distance."""
    u, v = query.mean(-2), prototype.mean(-2)
    if metric == "cosine":
        return F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).mT
    return -torch.cdist(u, v).square()


def neighbour_logits(query: Tensor, prototype: Tensor, neighbours: int = 1) -> Tensor:
    """Each query node counts its nearest nodes of a class, by cosine, for it (naive Bayes nearest neighbours)."""
    u, v = F.normalize(query, dim=-1), F.normalize(prototype, dim=-1)
    S = torch.einsum("...qnc,...wmc->...qwnm", u, v)
    return S.topk(min(neighbours, S.shape[-1]), dim=-1).values.mean((-2, -1))


def fused_logits(query: Tensor, prototype: Tensor) -> Tensor:
    """Each query node is classified by its cosine with the pooled prototypes, and the predictions are averaged."""
    u, v = F.normalize(query, dim=-1), F.normalize(prototype.mean(-2), dim=-1)
    scores = TEMPERATURE * torch.einsum("...qnc,...wc->...qnw", u, v)
    return scores.softmax(-1).mean(-2).log()
