"""Independent tasks at once: in processes of this machine, or on a Dask cluster; results come as they get done."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from reproductions import UserError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds within which a scheduler has to answer."""


def in_parallel(tasks: Sequence[Callable[[], T]], jobs: int, scheduler: str | None = None) -> Iterator[T]:
    """What the tasks return, in the order in which they get done.

    On a cluster, a task whose worker dies runs again on another one, and workers may come and go; while there is none,
    the tasks wait. The cluster is asked directly: joblib's own backend for it waits for ever on a task that the
    scheduler has given up, and leaves the tasks of a stopped run on the cluster.

    Args:
        tasks: they pickle, and so do their results.
        jobs: processes of this machine, where no scheduler is given.
        scheduler: address of a Dask scheduler; see :func:`connected`.

    Raises:
        UserError: the scheduler does not answer or is lost; a task ended every worker that began it, four by default
            (the scheduler's setting ``allowed-failures``); a worker has several threads; a process of this machine was
            ended from outside.
        Exception: whatever a task raises. Tasks that have not begun are dropped, and so they are when the iterator is
            closed.
    """
    if scheduler is None:
        # one by one: a bundle of tasks would hold back its first results, and its last task from an idle process
        parallel = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        results = parallel(joblib.delayed(task)() for task in tasks)
        try:
            for result in results:  # noqa: UP028  # closed below
                yield result
        except TerminatedWorkerError:
            raise UserError(
                "a process that measured rows was ended from outside, often for want of memory: what is finished is"
                " kept, give the command again with fewer --jobs"
            ) from None
        finally:
            with warnings.catch_warnings():  # of tasks that were begun for nothing: so they are when a run is stopped
                warnings.simplefilter("ignore", UserWarning)
                results.close()
        return
    with connected(scheduler) as client:
        yield from _on_cluster(tasks, client, scheduler)


def connected(scheduler: str) -> Client:
    """A client of the Dask scheduler at an address such as ``tcp://host:8786``, to be closed after use.

    Raises:
        UserError: the package ``distributed`` is not installed, nothing answers there within ``PATIENCE`` seconds, or
            a worker has several threads.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "a Dask cluster needs the package distributed, which is not installed: pip install 'matchmark[cluster]'"
        ) from None
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"no Dask scheduler answers at {scheduler!r}: {why}") from None
    try:
        for worker, threads in client.nthreads().items():
            _refuse_threads(worker, threads)
    except UserError:
        client.close()
        raise
    return client


def _on_cluster(tasks: Sequence[Callable[[], T]], client: Client, scheduler: str) -> Iterator[T]:
    from distributed import CancelledError, KilledWorker, as_completed

    finished = as_completed([client.submit(_in_one_thread, task, pure=False) for task in tasks], loop=client.loop)
    try:
        for future in finished:
            result = future.result()
            future.release()  # else the death of a worker that keeps it would have it computed again
            yield result
    except KilledWorker as error:
        raise UserError(
            f"a task of the cluster at {scheduler} ended {error.allowed_failures + 1} workers in a row, the last of "
            f"them {error.last_worker.address}: their logs say why, often it is memory"
        ) from None
    except CancelledError:
        raise UserError(f"the Dask scheduler at {scheduler} was stopped; what is finished is kept") from None


def _in_one_thread(task: Callable[[], T]) -> T:
    from distributed import get_worker

    worker = get_worker()  # it may have come after the others were looked at
    _refuse_threads(worker.address, worker.state.nthreads)
    return task()


def _refuse_threads(worker: str, threads: int) -> None:
    """Random states and kernels belong to a process: tasks in threads of one would disturb each other's numbers."""
    if threads > 1:
        raise UserError(
            f"the Dask worker {worker} has {threads} threads, and would measure in all of them at once: start it with "
            "--nthreads 1, and with --nworkers for more processes"
        )
