"""Graph matching in Lawler's form: any costs of choices and of pairs of choices, sparse, of all members or of some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from solvers import validation
from solvers.problems import Problem, QuadraticAssignmentProblem
from solvers.validation import ArrayLike, InvalidProblem


@dataclass(frozen=True, eq=False, init=False)
class GraphMatchingProblem(Problem):
    """Minimise Σ_i L[i, p(i)] + Σ_e q_e [p(i_e) = s_e and p(j_e) = t_e] + c over matchings p of n left nodes into m.

    (Lawler, Management Science 9, 1963.) A left node may stay unmatched, p(i) = −1, at no cost, unless the problem is
    ``complete``. One problem, no batch. ``solvers.dd_files`` reads and writes it as a ``.dd`` file.

    Args:
        linear: L, shape ``(n, m)``; ∞ where i may not be matched with s.
        pairs: shape ``(E, 4)``, integers: (i, s, j, t) says that i → s and j → t together cost q; i ≠ j, s ≠ t, both
            allowed, no pair twice, in either order.
        pair_costs: q, shape ``(E,)``, finite.
        constant: c, a number.
        complete: whether every left node is to be matched.

    Raises:
        InvalidProblem: NaN or −∞, shapes or indices that do not fit, a pair that is repeated or cannot occur, a
            complete problem without any matching.
    """

    linear: Tensor
    pairs: Tensor
    pair_costs: Tensor
    constant: Tensor
    complete: Tensor

    def __init__(
        self,
        linear: ArrayLike,
        pairs: ArrayLike | None = None,
        pair_costs: ArrayLike | None = None,
        constant: float | Tensor = 0.0,
        complete: bool = False,
    ) -> None:
        L = validation.tensor("linear", linear)
        if L.ndim != 2 or 0 in L.shape:
            raise InvalidProblem(f"linear must be one matrix (n, m), not empty, but its shape is {tuple(L.shape)}")
        if bool(torch.isnan(L).any()) or bool((L == -torch.inf).any()):
            raise InvalidProblem("linear must hold numbers, or ∞ where a match is not allowed, but it holds NaN or −∞")
        q = torch.zeros(0) if pair_costs is None else validation.tensor("pair_costs", pair_costs)
        e = torch.as_tensor(np.zeros((0, 4), np.int64) if pairs is None else pairs)
        c = validation.tensor("constant", constant).to(L)
        if not bool(torch.isfinite(q).all()) or not bool(torch.isfinite(c).all()) or c.ndim:
            raise InvalidProblem("pair_costs must be finite, and constant one finite number")
        if e.shape != (len(q), 4) or e.is_floating_point():
            raise InvalidProblem(
                f"pairs must be integers (E, 4) with one cost each; pairs has shape {tuple(e.shape)} and dtype "
                f"{e.dtype}, pair_costs {tuple(q.shape)}"
            )
        e = e.long().to(L.device)
        _check_pairs(L, e)
        if complete and not _is_matchable(L):
            raise InvalidProblem("the problem is complete, but its left nodes cannot all be matched at once")
        self._freeze(linear=L, pairs=e, pair_costs=q.to(L), constant=c, complete=torch.tensor(bool(complete)))

    @classmethod
    def from_quadratic_assignment(cls, problem: QuadraticAssignmentProblem) -> GraphMatchingProblem:
        """The same problem with every pair of choices written out: n² (n − 1)² / 2 of them.

        Raises:
            InvalidProblem: a batch of problems.
        """
        if problem.batch_shape.numel() != 1:
            raise InvalidProblem(f"a graph matching is one problem, not a batch of {tuple(problem.batch_shape)}")
        n = problem.A.shape[-1]
        A, B, L = (x.detach().reshape(n, n) for x in (problem.A, problem.B, problem.linear))
        i, j = torch.triu_indices(n, n, 1)
        s, t = (~torch.eye(n, dtype=torch.bool)).nonzero().T
        q = A[i, j][:, None] * B[s, t] + A[j, i][:, None] * B[t, s]
        left, right = torch.stack([i, j], -1)[:, None], torch.stack([s, t], -1)[None]
        shape = (*q.shape, 2)
        e = torch.cat([left.expand(shape), right.expand(shape)], -1)[..., [0, 2, 1, 3]]
        diagonals = torch.outer(A.diagonal(), B.diagonal())
        return cls(L + diagonals, e.reshape(-1, 4), q.reshape(-1), problem.constant.detach().reshape(()), complete=True)

    @property
    def messages(self) -> int:
        """How many messages its dual has: one for every label of either end of every table of ``pairs``."""
        i, j = self.pairs[:, 0], self.pairs[:, 2]
        tables = torch.stack([torch.minimum(i, j), torch.maximum(i, j)], -1).unique(dim=0)
        labels = torch.isfinite(self.linear).sum(1) + (~self.complete).to(self.pairs)
        return int(labels[tables].sum())

    def objective(self, x: Tensor) -> Tensor:
        """The objective of matchings ``(*many, n)``, −1 for an unmatched node; ``(*many,)``, float64."""
        p = x.clamp(min=0)
        picked = self.linear.expand(*x.shape[:-1], *self.linear.shape).gather(-1, p.unsqueeze(-1)).squeeze(-1)
        total = torch.where(x >= 0, picked, 0).sum(-1, dtype=torch.float64)
        i, s, j, t = self.pairs.T
        chosen = (x[..., i] == s) & (x[..., j] == t)
        return total + (chosen * self.pair_costs).sum(-1, dtype=torch.float64) + self.constant

    def is_feasible(self, x: Tensor, tol: float | None = None) -> bool:
        """Whether ``x`` (n,) matches left nodes as allowed, each to another right node, and all if it is complete."""
        n, m = self.linear.shape
        if x.shape != (n,) or x.is_floating_point() or bool(((x < -1) | (x >= m)).any()):
            return False
        matched = x[x >= 0]
        allowed = torch.isfinite(self.linear[x >= 0, matched]).all()
        return bool(allowed) and len(matched.unique()) == len(matched) and not (self.complete and len(matched) < n)


def _check_pairs(L: Tensor, pairs: Tensor) -> None:
    """Refuse pairs of choices that are out of range, forbidden, impossible or repeated."""
    n, m = L.shape
    i, s, j, t = pairs.T

    def refuse(wrong: Tensor, why: str) -> None:
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise InvalidProblem(f"pairs[{k}] = {pairs[k].tolist()} {why}; a pair is (i, s, j, t), for i → s and j → t")

    refuse((pairs < 0).any(-1) | (torch.maximum(i, j) >= n) | (torch.maximum(s, t) >= m), f"is not within {n} × {m}")
    refuse((i == j) | (s == t), "is of choices that exclude each other")
    refuse(~torch.isfinite(L[i, s]) | ~torch.isfinite(L[j, t]), "has a choice that linear does not allow")
    first, second = i * m + s, j * m + t
    key = torch.minimum(first, second) * (n * m) + torch.maximum(first, second)
    ordered, where = key.sort(stable=True)
    repeated = torch.zeros(len(key), dtype=torch.bool, device=key.device)
    repeated[where[1:]] = ordered[1:] == ordered[:-1]
    refuse(repeated, "is there twice")


def _is_matchable(L: Tensor) -> bool:
    graph: Any = sparse.csr_matrix(torch.isfinite(L).cpu().numpy())
    return bool((maximum_bipartite_matching(graph, perm_type="column") >= 0).all())
