"""What asv times with: a clock that stands still while the thread waits for a core that other processes hold.

On a shared machine a wall clock measures the neighbours: three of them on two cores make every solver three times as
slow. What the thread waits for by itself, such as a device, a lock, a disk or a ``sleep``, counts as before.
"""

import os
import threading
import time
from functools import cache

QUEUED = "/proc/thread-self/schedstat"  # Linux: nanoseconds on a core, nanoseconds ready and waiting for one, turns


def clock() -> float:
    """Seconds of this thread's life, less those it was ready to run and had no core; the wall clock elsewhere."""
    file = _schedule(threading.get_native_id())
    if file is None:
        return time.perf_counter()
    before = -1
    while before != (queued := _queued(file)):  # it may have had to wait in between
        before, now = queued, time.perf_counter()
    return now - queued * 1e-9


def _queued(file: int) -> int:
    return int(os.pread(file, 100, 0).split()[1])


@cache
def _schedule(thread: int) -> int | None:
    """The open file, of each thread its own: what a fork inherits is its parent's."""
    try:
        return os.open(QUEUED, os.O_RDONLY)
    except OSError:
        return None


class Timed:
    """The settings of benchmarks with a ``time_`` method; asv reads them from the class.

    Each commit has four turns, each with a process of its own, in the order A B, B A, A B, B A where ``asv continuous``
    compares two: how fast the machine is at the moment changes from one minute to the next, and less within one.
    """

    timer = staticmethod(clock)
    rounds = 4
    repeat = (3, 30, 1.5)  # samples of a round: at least, at most, and seconds after which the least are enough
    warmup_time = 0.0  # `benchmarks.common.warmed_up` has done it
    number = 1
