"""The solvers of the solver table, ours and others: each takes the nodes of an episode to its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

from reproductions.deepemd.method import TEMPERATURE, NodeMatching, cross_reference_weights, scaled, similarity

Optimum = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The optimal costs ``(B,)`` of problems C ``(B, N, M)``, a ``(B, N)``, b ``(B, M)``."""


@dataclass(frozen=True)
class Engine:
    """A solver of the table.

    Attributes:
        solver, settings: as the table records them.
        logits: of query ``(Q, N, C)`` and prototype nodes ``(W, N, C)``: ``(Q, W)``.
        module: what has to be installed, and how; "" where nothing has.
        episodes: at most so many are measured.
        slow: a call takes minutes, so that none is made for nothing.
    """

    solver: str
    settings: dict[str, Any]
    logits: Callable[[Tensor, Tensor], Tensor]
    module: str = ""
    install: str = ""
    episodes: int = 10_000
    slow: bool = False

    @property
    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        return "" if not self.module or find_spec(self.module) else f"needs {self.module}: {self.install}"


def by_pairs(optimum: Optimum, query: Tensor, prototype: Tensor) -> Tensor:
    """Logits as of ``NodeMatching``, the optimal costs found by another solver."""
    S = similarity(query, prototype)
    s, d = (scaled(w) for w in cross_reference_weights(query, prototype))
    value = optimum(*(x.flatten(0, 1).cpu() for x in (1 - S, s, d))).unflatten(0, S.shape[:2])  # solvers of the CPU
    return TEMPERATURE * (1 - value.to(S) / S.shape[-1])


def by_pot(C: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Network simplex of POT, one problem after another; its gradient is by the dual potentials, as ours."""
    a, b, C = (x.double() for x in (a, b, C))
    b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True)).detach()  # POT checks that the sums are the same
    if any(x.requires_grad for x in (a, b, C)):
        return torch.stack([ot.emd2(*problem) for problem in zip(a, b, C, strict=True)])
    return torch.tensor([ot.emd2(*problem) for problem in zip(a.numpy(), b.numpy(), C.numpy(), strict=True)])


def by_opencv(C: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """OpenCV's, in float32 and one after another: the official test path. The flow is a constant to the gradient."""
    import cv2

    arrays = [x.detach().float().numpy() for x in (a[..., None], b[..., None], C)]
    flows = [cv2.EMD(u, v, cv2.DIST_USER, np.ascontiguousarray(c))[2] for u, v, c in zip(*arrays, strict=True)]
    return (C * torch.from_numpy(np.stack(flows)).to(C)).sum((-2, -1))


def by_qpth(C: Tensor, a: Tensor, b: Tensor, strength: float = 1e-6, at_once: int = 25) -> Tensor:
    """Interior point method of qpth on cᵀx + δ/2 ‖x‖², as in the official training (form L2): few problems at a time.

    x ≥ 0, rows and columns at most a and b, and the total mass an equality.
    """
    from qpth.qp import QPFunction, QPSolvers

    n, m = C.shape[-2:]
    Q = strength * torch.eye(n * m, dtype=torch.float64)
    rows, columns = torch.eye(n).repeat_interleave(m, 1), torch.eye(m).repeat(1, n)
    G = torch.cat([-torch.eye(n * m), rows, columns]).double()
    A = torch.ones(1, n * m, dtype=torch.float64)
    values = []
    for c, u, v in zip(C.double().split(at_once), a.double().split(at_once), b.double().split(at_once), strict=True):
        h = torch.cat([torch.zeros(len(c), n * m, dtype=torch.float64), u, v], 1)
        total = torch.minimum(u.sum(1), v.sum(1))[:, None]
        x = QPFunction(verbose=-1, solver=QPSolvers.PDIPM_BATCHED)(Q, c.flatten(1), G, h, A, total)
        values.append((c.flatten(1) * x).sum(1))
    return torch.cat(values)


def _sinkhorn(reg: float) -> Engine:
    settings = {"reg": reg, "tolerance": 1e-4, "max_iterations": 10_000}
    return Engine("sinkhorn", settings, NodeMatching("sinkhorn", settings=settings).logits)


ENGINES = {
    "EMD, ours": Engine("emd", {}, NodeMatching().logits),
    "EMD, POT": Engine("ot.emd2", {}, partial(by_pairs, by_pot)),
    "EMD, OpenCV": Engine("cv2.EMD", {}, partial(by_pairs, by_opencv), "cv2", "pip install opencv-python-headless"),
    "QP, qpth": Engine(
        "qpth",
        {"form": "L2", "strength": 1e-6},
        partial(by_pairs, by_qpth),
        "qpth",
        "pip install cvxpy, then pip install --no-deps qpth",
        episodes=2,
        slow=True,
    ),
    **{f"Sinkhorn, ε = {reg:g}": _sinkhorn(reg) for reg in (0.01, 0.02, 0.05, 0.1, 0.5)},
}
