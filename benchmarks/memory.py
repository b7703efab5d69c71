"""Peak memory of large solves: each measured in a process of its own, beyond what imports and the instance take.

asv's own ``peakmem_`` benchmarks count interpreter and libraries, some hundred megabytes, and what the forked parent
had: a solver could double its memory unseen.
"""

import gc
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import common
from benchmarks.contenders import Instance, conditional_transport, emd, relaxed_transport, sinkhorn

# Name → the contender, the instance of a size, the task. One matrix has 36 MB, above what glibc keeps in its heap.
ITERATIONS = {"reg": 0.05, "iterations": 10}
TRANSPORT = common.transport_instance
CASES = {
    "sinkhorn": (sinkhorn.SOLVERS["sinkhorn"], TRANSPORT, "1x3000x3000", ITERATIONS),
    "sinkhorn_gradient": (sinkhorn.GRADIENTS["sinkhorn"], TRANSPORT, "1x3000x3000", ITERATIONS),
    "sinkhorn_points": (
        relaxed_transport.POINTS["sinkhorn"], common.point_cloud_instance, "1x5000x5000", {"iterations": 2}
    ),
    "conditional_transport": (
        conditional_transport.GRADIENTS["conditional_transport"], TRANSPORT, "1x3000x3000", {"temperature": 0.1}
    ),
    "emd": (emd.SOLVERS["emd"], TRANSPORT, "1x1500x1500", {}),
    "pot_batch_log": (sinkhorn.SOLVERS["pot_batch_log"], TRANSPORT, "1x3000x3000", ITERATIONS),
    "torch_log": (sinkhorn.SOLVERS["torch_log"], TRANSPORT, "1x3000x3000", ITERATIONS),
    "torch_conditional_transport": (
        conditional_transport.GRADIENTS["torch"], TRANSPORT, "1x3000x3000", {"temperature": 0.1}
    ),
    "pot_emd": (emd.SOLVERS["pot"], TRANSPORT, "1x1500x1500", {}),
}  # fmt: skip
OURS = ("sinkhorn", "sinkhorn_gradient", "sinkhorn_points", "conditional_transport", "emd")
PEERS = tuple(name for name in CASES if name not in OURS)
SMALL = "1x20x20"  # what is compiled or loaded on first use must not count
CHILD = """
import importlib.util, sys
folder, solver, device, size = sys.argv[1:]
where = {"submodule_search_locations": [folder]}
spec = importlib.util.spec_from_file_location("benchmarks", folder + "/__init__.py", **where)
sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["benchmarks"])
from benchmarks import memory
print(*memory.peaks(solver, device, size))
"""


class PeakMemory:
    """Of the process, what the solve adds at its height to what was there before it, instance included."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver",)
    params = (common.grid(OURS, PEERS),)
    timeout = 300

    def setup(self, solver):
        if not Path("/proc/self/clear_refs").exists():
            raise NotImplementedError("the peak of a process is reset through /proc, which Linux has")
        _runnable(solver, "cpu")

    def track_peak_memory(self, solver):
        return common.tracked(in_a_process(solver, "cpu")[0])

    track_peak_memory.unit = "bytes"


class PeakMemoryOfTheGpu:
    """What the solve adds at its height to the tensors on the device, and to what torch holds of it for them."""

    version = "1"
    param_names = ("solver",)
    params = (common.grid(["sinkhorn", "conditional_transport"], ["sinkhorn_gradient", "pot_batch_log", "torch_log"]),)
    timeout = 300

    def setup(self, solver):
        common.require_device("cuda")
        _runnable(solver, "cuda")

    def track_peak_allocated(self, solver):
        return common.tracked(in_a_process(solver, "cuda")[0])

    track_peak_allocated.unit = "bytes"

    def track_peak_reserved(self, solver):
        return common.tracked(in_a_process(solver, "cuda")[1])

    track_peak_reserved.unit = "bytes"


def _runnable(solver, device):
    """Skip, from ``setup``, what this commit or this machine cannot run."""
    _prepared(solver, device, SMALL)


def _prepared(solver, device, size):
    contender, instance, _, task = CASES[solver]
    return contender.prepared(Instance(instance(size), "float32", device), **task)


def in_a_process(solver, device, size=None):
    """Bytes: of the process, or of the device allocated and reserved.

    Raises:
        RuntimeError: the process failed; with what it said.
    """
    folder = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [str(folder), solver, device, size or CASES[solver][2]]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{solver} was not measured: {done.stderr}")
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def peaks(solver, device, size):
    """As above, in this process."""
    common.finite(_prepared(solver, device, SMALL)())
    call = _prepared(solver, device, size)
    gc.collect()
    return (_of_the_gpu if device == "cuda" else _of_the_process)(call)


def _of_the_process(call):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what the process holds
    before = _status("VmHWM")
    answer = call()
    peak = _status("VmHWM")
    common.finite(answer)
    return [peak - before]


def _of_the_gpu(call):
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    answer = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    common.finite(answer)
    return [after - held for after, held in zip(peak, before, strict=True)]


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(kilobytes)
