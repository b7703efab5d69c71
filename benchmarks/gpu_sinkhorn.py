"""Sinkhorn on a CUDA device, ours beside its peers: ``python -m benchmarks.gpu_sinkhorn``.

Times are of the device, between two CUDA events around a call on tensors that are already there; they include what the
host makes the device wait for. Every run finds the L2 cache overwritten. The bandwidth is that of an algorithm which
reads the n × m matrix of every problem once an iteration: a solver that reads it twice shows half of what it moves, and
one that keeps it on chip may show more than a copy does.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.contenders import Call, Contender, Instance
from benchmarks.contenders.sinkhorn import SOLVERS
from reproductions.storage import write_atomically

ROOT = Path(__file__).resolve().parents[1]
REG = 0.05
SIZES = ("256x49x49", "64x196x80", "1x1000x1000", "1x4000x4000")
TASKS: dict[str, dict[str, Any]] = {
    "100 iterations": {"iterations": 100},
    "to 1e-6": {"iterations": 2000, "tolerance": 1e-6},
}
REPETITIONS = 15
FLUSH = 1 << 28  # bytes, several times the L2 cache
COPIED = 1 << 30  # bytes of the copy whose bandwidth is the yardstick

Row = dict[str, Any]
Timer = Callable[[Call], list[float]]


def _kernels(instance: Instance, reg: float, iterations: int, tolerance: float | None = None) -> Call:
    """The Triton kernels alone, without the checks of input and answer."""
    from solvers.kernels.sinkhorn_triton import sinkhorn_cuda  # not at import: asv forks what has imported this

    C, a, b = instance.tensors()
    limit = torch.full_like(a[:, 0], -1.0 if tolerance is None else tolerance, dtype=torch.float64)
    settings = torch.full_like(limit, reg), limit, torch.full_like(limit, iterations)
    return lambda: sinkhorn_cuda(C, a, b, *settings)[4]


def _pot_scaling(instance: Instance, **task: Any) -> Call:
    """POT starts its scalings on torch's default device."""
    call = SOLVERS["pot_batch_scaling"].make(instance, **task)

    def on_the_device() -> Tensor:
        with torch.device(instance.device):
            return call()

    return on_the_device


CONTENDERS = {
    "kernels": Contender(_kernels, "matchmark", "scaling"),
    "pot_batch_scaling": Contender(_pot_scaling, "POT", "scaling"),
    **{name: SOLVERS[name] for name in ("sinkhorn", "pot_batch_log", "geomloss", "torch_log", "torch_scaling")},
}


def events(repetitions: int) -> Timer:
    """Times a call on the current CUDA device: seconds of every repetition, after two that are not timed."""
    cache = torch.empty(FLUSH, dtype=torch.int8, device="cuda")

    def timed(call: Call) -> list[float]:
        seconds = []
        for _ in range(repetitions + 2):
            cache.zero_()
            torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        return seconds[2:]

    return timed


def copy_bandwidth(timed: Timer, device: str) -> float:
    """Bytes read and written per second by a copy on the device."""
    source = torch.empty(COPIED, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return float(2 * COPIED / np.median(timed(partial(target.copy_, source))))


def measured(sizes: Sequence[str], device: str, timed: Timer, bandwidth: float) -> pd.DataFrame:
    """One row a task, size and contender; what has no time has the reason in ``status``."""
    rows = []
    for task, settings in TASKS.items():
        for size in sizes:
            instance = Instance(common.transport_instance(size), "float32", device)
            for name, contender in CONTENDERS.items():
                row: Row = {"task": task, "size": size, "dtype": instance.dtype, "solver": name}
                rows.append(row | {"library": contender.library} | _result(contender, instance, settings, timed))
    table = pd.DataFrame(rows)
    peers = table["seconds"].where(table["library"] != "matchmark")
    table["ratio_to_fastest_peer"] = table["seconds"] / peers.groupby([table["task"], table["size"]]).transform("min")
    table["share_of_copy_bandwidth"] = table["bytes_per_second"] / bandwidth
    return table


def _result(contender: Contender, instance: Instance, task: dict[str, Any], timed: Timer) -> Row:
    result: Row = {"status": "ok", **dict.fromkeys(("seconds", "iqr", "marginal_error", "bytes_per_second"), np.nan)}
    try:
        call = contender.make(instance, reg=REG, **task)
        result["marginal_error"] = common.marginal_error(call(), *instance.arrays[1:])
        seconds = timed(call)
    except Exception as error:  # a peer may fail in any way, and the others are still to be measured
        return result | {"status": f"{type(error).__name__}: {error}".partition("\n")[0]}
    low, result["seconds"], high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    result["iqr"] = high - low
    if "tolerance" not in task:  # else the number of iterations is the solver's own
        touched = np.prod(instance.shape) * np.dtype(instance.dtype).itemsize * task["iterations"]
        result["bytes_per_second"] = float(touched) / result["seconds"]
    return result


def markdown(table: pd.DataFrame, machine: str, bandwidth: float) -> str:
    """The table for reading: a section a task and size, the fastest first."""
    assert __doc__ is not None
    about = " ".join(__doc__.partition("\n\n")[2].split())
    lines = ["# Sinkhorn on a GPU", f"{machine}; a copy moves {bandwidth / 1e9:.0f} GB/s. ε = {REG:g}. {about}"]
    for (task, size), rows in table.groupby(["task", "size"], sort=False):
        fastest = rows.sort_values("seconds")
        median, iqr = ((1e3 * fastest[column]).map("{:.3f}".format) for column in ("seconds", "iqr"))
        shown = pd.DataFrame(
            {
                "solver": fastest["solver"],
                "ms": median + " ± " + iqr,
                "to the fastest peer": fastest["ratio_to_fastest_peer"].map("{:.2f}".format),
                "marginal error": fastest["marginal_error"].map("{:.1e}".format),
                "of the copy's bandwidth": fastest["share_of_copy_bandwidth"].map("{:.0%}".format),
                "status": fastest["status"],
            }
        ).replace(["nan", "nan%", "nan ± nan"], "–")
        lines += [f"## {size}, {task}, float32", shown.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, or 2 where it cannot begin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_sinkhorn", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, metavar="N", help="at least 9; default: 15")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: the results of this checkout")
    chosen = parser.parse_args(arguments)
    if chosen.repetitions < 9:
        parser.error(f"--repetitions must be at least 9, not {chosen.repetitions}")
    from solvers.kernels.sinkhorn_triton import unavailable_reason

    if reason := unavailable_reason():
        print(f"Sinkhorn cannot be measured on a GPU here: {reason}.", file=sys.stderr)
        return 2
    timed = events(chosen.repetitions)
    bandwidth = copy_bandwidth(timed, "cuda")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "pot"))
    machine = f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, {versions}"
    table = measured(SIZES, "cuda", timed, bandwidth)
    for suffix, content in (
        ("csv", table.assign(machine=machine).to_csv(index=False, lineterminator="\n", float_format="%.5g")),
        ("md", markdown(table, machine, bandwidth)),
    ):
        path = chosen.results / "benchmarks" / f"gpu_sinkhorn.{suffix}"
        write_atomically(path, content)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
