"""The benchmarks: our solvers beside their peers, on the same instances, one thread each.

``asv run`` measures the last commit, ``asv continuous HEAD~1 HEAD`` compares two, and ``asv run -E existing --quick
--dry-run`` tries the working tree. ``MATCHMARK_BENCH`` picks the grid: ``fast`` (the default), ``regular``
or ``large``; see `benchmarks.common`. ``python -m benchmarks.study`` measures everything side by side, once, into
tables; see `benchmarks.study`.
"""

import os

# The thread pools are sized when torch, NumPy, Numba and JAX (which goes by NPROC) are first imported, so this has to
# come before them. A value that is already there wins: the matrix of asv.conf.json sets one, and so may whoever wants
# to measure more threads.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")
for _name in THREAD_VARIABLES:
    os.environ.setdefault(_name, "1")
# POT loads every array library there is: JAX takes seconds, and starts threads that a fork does not survive.
os.environ.setdefault("POT_BACKEND_DISABLE_JAX", "1")
