"""A transport plan that is not stored: its rows are computed when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

BLOCK = 1 << 22  # entries held at a time: 32 MB in float64


class _Lazy:
    """A frozen dataclass of tensors, some of which may carry a graph."""

    def _mapped(self, move: Any) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: move(v) if isinstance(v, Tensor | _Lazy) else v for k, v in values.items()})

    @property
    def requires_grad(self) -> bool:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return any(v.requires_grad for v in values if isinstance(v, Tensor | _Lazy))

    def detach(self) -> Self:
        """The same without its graph."""
        return self._mapped(lambda t: t.detach())

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._mapped(lambda t: t.to(device))


@dataclass(frozen=True, eq=False)
class FactoredCost(_Lazy):
    """C_ij = α_i + β_j − X_i · Y_j, float64.

    Attributes:
        X: shape ``(*batch, n, d)``.
        Y: shape ``(*batch, m, d)``.
        alpha: α, shape ``(*batch, n)``.
        beta: β, shape ``(*batch, m)``.
    """

    X: Tensor
    Y: Tensor
    alpha: Tensor
    beta: Tensor

    @property
    def shape(self) -> torch.Size:
        """``(*batch, n, m)``."""
        return torch.Size((*self.alpha.shape, self.beta.shape[-1]))

    def rows(self, start: int, stop: int) -> Tensor:
        """C[..., start:stop, :]; differentiable."""
        sums = self.alpha[..., start:stop, None] + self.beta.unsqueeze(-2)
        return sums - self.X[..., start:stop, :] @ self.Y.mT

    def is_equal_to(self, other: FactoredCost) -> bool:
        """Whether all factors are the same numbers."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of consecutive rows, together all of them, each block of some 4 million entries."""
        n = self.shape[-2]
        size = block_size(n, self.shape[:-2].numel() * self.shape[-1])
        for start in range(0, n, size):
            yield start, min(start + size, n)

    def problems(self) -> Iterator[FactoredCost]:
        """One cost of each problem of the batch, in row-major order."""
        lead = len(self.shape) - 2
        tensors = [getattr(self, f.name) for f in fields(self)]
        for parts in zip(*(t.reshape(-1, *t.shape[lead:]) for t in tensors), strict=True):
            yield FactoredCost(*parts)


def block_size(n: int, width: int) -> int:
    """How many of n rows of that many entries to hold at a time: a multiple of 8, at least 16."""
    return min(n, max(16, BLOCK // width // 8 * 8))


@dataclass(frozen=True, eq=False)
class LazyPlan(_Lazy):
    """T_ij = exp((f_i + g_j − C_ij)/ε), computed in float64 from potentials and a cost that is computed too.

    Every method reads the plan in blocks of rows and holds one block at a time, except ``dense``.

    Attributes:
        cost: C, shape ``(*batch, n, m)``, from its factors.
        f: potentials of the rows, float64 ``(*batch, n)``, −∞ for a node without mass.
        g: potentials of the columns, float64 ``(*batch, m)``, likewise.
        reg: ε, float64 ``(*batch,)``.
        dtype: of what the methods return.
    """

    cost: FactoredCost
    f: Tensor
    g: Tensor
    reg: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """``(*batch, n, m)``."""
        return self.cost.shape

    @property
    def device(self) -> torch.device:
        return self.f.device

    def block(self, start: int, stop: int, cost: Tensor) -> Tensor:
        """T[..., start:stop, :] in float64, from these rows of the cost; differentiable."""
        exponent = self.f[..., start:stop, None] + self.g.unsqueeze(-2) - cost
        return torch.exp(exponent / self.reg[..., None, None])

    def rows(self, start: int, stop: int) -> Tensor:
        """T[..., start:stop, :]; differentiable."""
        return self.block(start, stop, self.cost.rows(start, stop)).to(self.dtype)

    def dense(self) -> Tensor:
        """T, n · m numbers; differentiable."""
        return self.rows(0, self.shape[-2])

    @torch.no_grad()
    def apply(self, v: Tensor) -> Tensor:
        """T v for a vector ``(*batch, m)`` or a matrix ``(*batch, m, k)``; without a graph."""
        matrix = v.ndim == self.g.ndim + 1
        v = self._checked("v", v, self.g)
        parts = [self.block(s, e, self.cost.rows(s, e)) @ v for s, e in self.cost.blocks()]
        out = torch.cat(parts, -2).to(self.dtype)
        return out if matrix else out.squeeze(-1)

    @torch.no_grad()
    def apply_transposed(self, u: Tensor) -> Tensor:
        """Tᵀ u for a vector ``(*batch, n)`` or a matrix ``(*batch, n, k)``; without a graph."""
        matrix = u.ndim == self.f.ndim + 1
        u = self._checked("u", u, self.f)
        out = torch.zeros((*self.g.shape, u.shape[-1]), dtype=torch.float64, device=self.device)
        for s, e in self.cost.blocks():
            out += self.block(s, e, self.cost.rows(s, e)).mT @ u[..., s:e, :]
        out = out.to(self.dtype)
        return out if matrix else out.squeeze(-1)

    @torch.no_grad()
    def argmax(self) -> Tensor:
        """The column of the largest entry of each row, int64 ``(*batch, n)``; of a row without mass, too."""
        g = self.g.unsqueeze(-2)
        return torch.cat([(g - self.cost.rows(s, e)).argmax(-1) for s, e in self.cost.blocks()], -1)

    @torch.no_grad()
    def barycenters(self, points: Tensor) -> Tensor:
        """Where the mass of each row goes on average, Σ_j T_ij p_j / Σ_j T_ij, of points ``(*batch, m, k)``.

        Shape ``(*batch, n, k)``; a row without mass goes where a small mass there would go.
        """
        p = self._checked("points", points, self.g)
        scaled = self.g.unsqueeze(-2) / self.reg[..., None, None]
        parts = []
        for s, e in self.cost.blocks():
            parts.append(torch.softmax(scaled - self.cost.rows(s, e) / self.reg[..., None, None], -1) @ p)
        return torch.cat(parts, -2).to(self.dtype)

    def _checked(self, name: str, v: Tensor, like: Tensor) -> Tensor:
        """A vector or matrix as a matrix in float64."""
        if v.ndim not in (like.ndim, like.ndim + 1) or v.shape[: like.ndim] != like.shape:
            raise ValueError(
                f"{name} has shape {tuple(v.shape)}, but for a plan of shape {tuple(self.shape)} it must have shape "
                f"{tuple(like.shape)}, or this and one more dimension"
            )
        v = v.to(dtype=torch.float64, device=self.device)
        return v if v.ndim == like.ndim + 1 else v.unsqueeze(-1)
