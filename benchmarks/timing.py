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
    queued = 0 if file is None else int(os.pread(file, 100, 0).split()[1])
    return time.perf_counter() - queued * 1e-9


@cache
def _schedule(thread: int) -> int | None:
    """The open file, of each thread its own: what a fork inherits is its parent's."""
    try:
        return os.open(QUEUED, os.O_RDONLY)
    except OSError:
        return None


class Timed:
    """The settings of benchmarks with a ``time_`` method; asv reads them from the class.

    Ten to twenty samples a commit, in two processes between which ``asv continuous`` turns to the other commit: enough
    for its rank test, which no seven pairs pass by chance at its level of 0.002.
    """

    timer = staticmethod(clock)
    rounds = 2
    repeat = (5, 10, 1.0)  # samples of a round: at least, at most, and seconds after which the least are enough
    warmup_time = 0.0  # `benchmarks.common.warmed_up` has done it
    number = 1
