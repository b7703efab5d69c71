"""The study: all solvers and peers on the same instances, interleaved, into ``results/benchmarks``.

``python -m benchmarks.study`` (``make study``) measures in one process a thread count; `cases` says what, `measure`
how, `tables` and `figure` make what people read. Stopped at any moment it goes on where it stopped: what is measured is
kept in ``results/cache`` under everything it depends on: the code, the versions, the processor and the threads.
"""
