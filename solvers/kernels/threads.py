"""Independent pieces of compiled work on as many threads as numba has.

For pieces that take long: Python starts each, the compiled code runs without its lock. What numba itself makes parallel
starts faster, but takes several times as long to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from numba import get_num_threads


def on_threads(piece: Callable[[int], None], count: int, long: bool) -> None:
    """Call ``piece`` with 0 … count − 1; side by side where the pieces are said to be long."""
    threads = min(count, get_num_threads())
    if threads <= 1 or not long:
        for k in range(count):
            piece(k)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(piece, range(count)))
