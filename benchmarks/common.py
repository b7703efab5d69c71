"""What all benchmarks share: the profile, the instances, and the checks that keep a wrong answer from passing as fast.

Grids come from the environment variable ``MATCHMARK_BENCH``, never from the machine:

* ``fast``, the default: three sizes a family, float32. With ``--quick`` it ends in about a minute on two cores.
* ``regular``: float64 and OpenCV as well. What a stored history should be measured with.
* ``large``: larger sizes as well.

asv starts a process for every combination of parameters: forked from one that has imported this package (the launch
method ``forkserver``), so torch and POT are imported once, here. Nothing may touch CUDA or run in parallel at import:
neither survives a fork. With ``--launch-method spawn`` every process imports for itself, some seconds each.

asv takes NaN for "skipped" and NotImplementedError in ``setup`` for "skip me", so whatever is non-finite, unconverged
or broken raises something else here.
"""

import ctypes
import math
import os
import sys
from functools import cache

import numpy as np
import torch

PROFILES = ("fast", "regular", "large")
PROFILE = os.environ.get("MATCHMARK_BENCH", "fast")
if PROFILE not in PROFILES:
    raise ValueError(f"MATCHMARK_BENCH must be one of {', '.join(PROFILES)}, not {PROFILE!r}")


def grid(fast, regular=(), large=()):
    """The values of a parameter in the chosen profile; each profile includes the smaller ones."""
    chosen = PROFILES.index(PROFILE) + 1
    return [value for values in (fast, regular, large)[:chosen] for value in values]


# ------------------------------------------------------------------------------------------------------- instances


@cache
def assignment_instance(size):
    """Costs of shape (batch, n, m), float64, for a size "batch x n x m" such as "64x49x49".

    Cosine distances of random unit features in 16 dimensions, the costs vision problems have.
    """
    batch, n, m = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((batch, k, 16)) for k in (n, m))
    x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    return 1 - x @ y.swapaxes(-1, -2)


@cache
def transport_instance(size):
    """The same costs with weights (batch, n) and (batch, m): random, not uniform, each summing to 1."""
    cost = assignment_instance(size)
    rng = np.random.default_rng(1)
    weights = (rng.uniform(0.5, 1.5, (len(cost), k)) for k in cost.shape[1:])
    return cost, *(w / w.sum(-1, keepdims=True) for w in weights)


# --------------------------------------------------------------------------------------------------------- devices


def require_device(device):
    """Skip, from ``setup``, where there is no such device."""
    if device != "cuda":
        return
    try:  # asking the driver first spares machines without one the import of torch, once for every combination
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise NotImplementedError("no CUDA driver on this machine") from None
    if not torch.cuda.is_available():
        raise NotImplementedError("no CUDA device on this machine")


def synchronize(device):
    """Wait for the device: a CUDA kernel is only queued when its call returns."""
    if device == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------------------- checks


def solved(solution):
    """A solution of ours, if it is optimal or converged.

    Raises:
        RuntimeError: any other status.
    """
    status = solution.status
    if status.name not in ("OPTIMAL", "CONVERGED"):
        raise RuntimeError(f"{solution.solver} ended with {status.name}: {solution.message or status.sentence}")
    return solution


def finite(x):
    """A tensor, an array or a list of arrays as a NumPy array.

    Raises:
        FloatingPointError: NaN or infinity in it.
    """
    array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if not np.isfinite(array).all():
        raise FloatingPointError("the solver returned NaN or infinity")
    return array


def warmed_up(call):
    """``call`` itself, after one run of it that compiles what is to be compiled, and whose result is checked.

    Raises:
        RuntimeError: the call raised NotImplementedError, which asv would take for a wish to be skipped.
    """
    try:
        finite(call())
    except NotImplementedError as error:
        raise RuntimeError(f"the solver failed: {error!r}") from error
    return call


def tracked(value):
    """A number for asv to compare: six significant digits, at least 1e-9, so that rounding is no regression.

    Raises:
        FloatingPointError: NaN or infinity, or a negative value; lower is better, down to 0.
    """
    if not (math.isfinite(value) and value >= 0):
        raise FloatingPointError(f"the tracked value is {value}")
    return max(float(f"{value:.5e}"), 1e-9)


def marginal_error(plan, a, b):
    """‖T 1 − a‖₁ + ‖Tᵀ 1 − b‖₁, the largest of the batch, in float64."""
    plan = finite(plan).astype(np.float64)
    return (np.abs(plan.sum(-1) - a).sum(-1) + np.abs(plan.sum(-2) - b).sum(-1)).max()


def relative_gap(value, optimum):
    """|value − optimum| / |optimum|, the largest of the batch; absolute, as an infeasible answer may undercut."""
    return (np.abs(value - optimum) / np.abs(optimum)).max()
