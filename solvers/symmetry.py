"""Symmetries of a quadratic assignment: choices that an automorphism maps onto each other are worth the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

STEPS = 2000  # of the search for one automorphism, after which there is taken to be none


def orbits(M: Doubles, L: Doubles) -> NDArray[np.int64]:
    """Of every member the first one that an automorphism maps onto it (m,); orbits not found out count as different.

    An automorphism σ leaves M (m, m) and the rows of L (m, anything) as they are: M[σ(x), σ(y)] = M[x, y] and
    L[σ(x)] = L[x], bit for bit. For the columns of a quadratic assignment M is B and L the transposed linear term, for
    its rows M is A and L the linear term itself.
    """
    m = len(M)
    like = (L[:, None] == L).all(-1) & np.equal.outer(np.diag(M), np.diag(M))
    first = np.arange(m)
    if like.sum() == m:
        return first
    for lines in (np.sort(M, 1), np.sort(M.T, 1)):
        like &= (lines[:, None] == lines).all(-1)
    for x in range(m):
        for y in range(x):
            if first[y] == y and like[y, x] and _is_mapped(M, like, y, x):
                first[x] = y
                break
    return first


def _is_mapped(M: Doubles, like: NDArray[np.bool_], x: int, y: int) -> bool:
    """Whether an automorphism maps x to y, by backtracking over the images of one member after the other."""
    m, steps = len(M), 0
    if _is_exchange(M, x, y):
        return True
    sources, images = [x, *(z for z in range(m) if z != x)], [y]
    tried: list[list[int]] = []
    while True:
        depth = len(images)
        if depth == m:
            return True
        steps += 1
        if steps > STEPS:
            return False
        s, before = sources[depth], sources[:depth]
        fits = like[s] & (M[:, images] == M[s, before]).all(1) & (M[images].T == M[before, s]).all(1)
        fits[images] = False
        tried.append(np.flatnonzero(fits).tolist())
        while tried and not tried[-1]:
            tried.pop()
            images.pop()
        if not tried:
            return False
        images.append(tried[-1].pop(0))


def _is_exchange(M: Doubles, x: int, y: int) -> bool:
    """Whether exchanging x and y alone is an automorphism."""
    order = np.arange(len(M))
    order[[x, y]] = y, x
    return bool((M[np.ix_(order, order)] == M).all())
