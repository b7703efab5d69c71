"""Random numbers for compiled loops: each start of a search has its own stream, the same on any number of threads.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014); a stream is one
unsigned integer, kept in an array of one.
"""

from __future__ import annotations

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from solvers.kernels.compiling import compiled

Stream = NDArray[np.uint64]


@compiled
def uniform(stream: Stream) -> float:  # pragma: no cover - compiled
    """A number in [0, 1)."""
    stream[0] += uint64(0x9E3779B97F4A7C15)
    x = stream[0]
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    x = x ^ (x >> uint64(31))
    return np.float64(x >> uint64(11)) * 2.0**-53


@compiled
def below(stream: Stream, n: int) -> int:  # pragma: no cover - compiled
    """An integer in 0 … n − 1."""
    x = int(uniform(stream) * n)
    return x if x < n else n - 1


@compiled
def shuffle(stream: Stream, x: NDArray) -> None:  # pragma: no cover - compiled
    """Put x in random order (Fisher and Yates)."""
    for k in range(len(x) - 1, 0, -1):
        other = below(stream, k + 1)
        x[k], x[other] = x[other], x[k]


def streams(seed: int, *shape: int) -> Stream:
    """Independent streams (*shape, 1) of one seed, which may be negative."""
    sequence = np.random.SeedSequence(abs(seed), spawn_key=(int(seed < 0),))
    return sequence.generate_state(int(np.prod(shape)), np.uint64).astype(np.uint64).reshape(*shape, 1)
