"""Regularised Hough matching: votes of cell pairs are strengthened by those of all pairs with a similar offset.

The offset of a pair of cells falls into a bin of the Hough space, which sums the votes; smoothed, it multiplies them
(Min et al., ICCV 2019; SCOT sec. 3.3). Cells lie on grids, so the bin of a pair is the sum of two entries of small
tables, one for the columns and one for the rows: no matrix of bins is made, and one pass sums the votes, another takes
the best match of each cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from torch import Tensor

from reproductions.scot.cells import Cells

BINS, FILTER, FWHM = 8192, 7, 3.5  # cells of the Hough space; side and full width at half maximum of its filter


@dataclass(frozen=True, eq=False)
class HoughSpace:
    """The bins of offsets between the cells of two images, of about 8192 in all, square."""

    source: Cells
    target: Cells

    @cached_property
    def side(self) -> float:
        """δ of a bin, in pixels."""
        height, width = (s + t for s, t in zip(self.source.size, self.target.size, strict=True))
        return float(np.sqrt(width * height / BINS))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of bins."""
        rows, columns = (int((s + t) / self.side) + 1 for s, t in zip(self.source.size, self.target.size, strict=True))
        return rows, columns

    def votes(self, V: Tensor) -> NDArray[np.float64]:
        """Sum of the votes V ``(targets, sources)`` in each bin."""
        h = np.zeros(self.shape[0] * self.shape[1])
        _sum_votes(V.numpy(), *self._tables, h)
        return h.reshape(self.shape)

    def smoothed(self, V: Tensor) -> NDArray[np.float32]:
        """The votes in each bin after a 7×7 Gaussian, zero outside."""
        line = gaussian()
        h = self.votes(V)
        for axis in (0, 1):
            h = correlate1d(h, line, axis, mode="constant")
        return h.astype(np.float32)

    def confidence(self, V: Tensor) -> Tensor:
        """Votes times the smoothed votes of their bins, ``(targets, sources)``."""
        column_bins, row_bins, x_t, y_t = (torch.from_numpy(x).long() for x in self._tables)
        return V * torch.from_numpy(self.smoothed(V).ravel())[column_bins[x_t] + row_bins[y_t]]

    def best_matches(self, V: Tensor) -> Tensor:
        """The target's cell of highest confidence of each source cell, ``(sources,)``; the first of equals."""
        best = np.zeros(V.shape[1], np.int32)
        _best_of_columns(V.numpy(), *self._tables, self.smoothed(V).ravel(), best)
        return torch.from_numpy(best).long()

    @cached_property
    def _tables(self) -> tuple[NDArray[np.int32], ...]:
        """Bins by column, and by row, of a target's cell with every source cell; column and row of each target cell."""
        bins, numbers = [], []
        for axis, stride in ((0, 1), (1, self.shape[1])):
            t, of_target = np.unique(self.target.centres[:, axis].double().numpy(), return_inverse=True)
            s = self.source.centres[:, axis].double().numpy()
            extent = self.source.size[1 - axis]
            bins.append(np.floor((extent - s + t[:, None]) / self.side).astype(np.int32) * np.int32(stride))
            numbers.append(of_target.astype(np.int32))
        return *bins, *numbers


def gaussian() -> NDArray[np.float64]:
    """The filter along one axis; it sums to 1."""
    x = np.arange(FILTER) - FILTER // 2
    line = np.exp(-(x**2) / (2 * (FWHM / 2.354) ** 2))
    return line / line.sum()


@njit(cache=True, fastmath={"contract"}, nogil=True)
def _sum_votes(V, column_bins, row_bins, x_t, y_t, h):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    for t in range(V.shape[0]):
        columns, rows = column_bins[x_t[t]], row_bins[y_t[t]]
        for s in range(V.shape[1]):
            h[columns[s] + rows[s]] += V[t, s]


@njit(cache=True, fastmath={"contract"}, nogil=True)
def _best_of_columns(V, column_bins, row_bins, x_t, y_t, h, best):  # type: ignore[no-untyped-def] # pragma: no cover
    highest = np.full(V.shape[1], -np.inf, V.dtype)
    for t in range(V.shape[0]):
        columns, rows = column_bins[x_t[t]], row_bins[y_t[t]]
        for s in range(V.shape[1]):  # without branches, so that it runs by vectors
            confidence = V[t, s] * h[columns[s] + rows[s]]
            better = confidence > highest[s]
            highest[s] = confidence if better else highest[s]
            best[s] = t if better else best[s]
