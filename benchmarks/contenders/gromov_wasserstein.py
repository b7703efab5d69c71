"""Gromov–Wasserstein: every contender takes distances Dx, Dy to a matching (batch, n) or a coupling (batch, n, n).

All are local methods of a problem that is not convex, each from its own start: times say little without the values.
The entropic ones run at ε = 5e-3 (distances are at most 1).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ot
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.contenders import Call, Contender, Instance
from solvers import QuadraticAssignmentProblem

REG = 5e-3


def _ours(instance: Instance, **settings: Any) -> Call:
    solver, (Dx, Dy) = common.ours("gromov_wasserstein", **settings), instance.tensors()

    def call() -> Any:
        solution = solver.solve(QuadraticAssignmentProblem.from_gromov_wasserstein(Dx, Dy))
        # The peers, too, return what they have at their limit of iterations.
        return common.solved(solution, "ITERATION_LIMIT").permutation

    return call


def _pot(instance: Instance) -> Call:
    Dx, Dy = instance.numpy()
    return lambda: [ot.gromov.gromov_wasserstein(*pair) for pair in zip(Dx, Dy, strict=True)]


def _pot_entropic(instance: Instance) -> Call:
    Dx, Dy = instance.numpy()
    return lambda: [ot.gromov.entropic_gromov_wasserstein(*pair, epsilon=REG) for pair in zip(Dx, Dy, strict=True)]


def _pot_batch(instance: Instance) -> Call:
    Dx, Dy = instance.tensors()
    return lambda: ot.solve_gromov_batch(Dx, Dy, reg=REG, grad="detach").plan


def _ott(instance: Instance) -> Call:
    """Jitted over the whole batch; compiled by the first call, which is not timed."""
    jax = common.peer("jax")
    geometry, quadratic = common.peer("ott.geometry.geometry"), common.peer("ott.solvers.quadratic")
    double, device = instance.dtype == "float64", jax.devices("cpu")[0]

    def coupling(Dx: NDArray[Any], Dy: NDArray[Any]) -> Any:
        return quadratic.solve(*(geometry.Geometry(cost_matrix=D) for D in (Dx, Dy)), epsilon=REG).matrix

    run = jax.jit(jax.vmap(coupling))
    with jax.enable_x64(double):
        arrays = [jax.device_put(x, device) for x in instance.numpy()]

    def call() -> Any:
        with jax.enable_x64(double):
            return run(*arrays).block_until_ready()

    return call


SOLVERS = {
    "gromov_wasserstein": Contender(_ours, "matchmark", "conditional gradient, rounded"),
    "gromov_wasserstein_entropic": Contender(
        partial(_ours, method="entropic", reg=REG), "matchmark", "entropic, rounded"
    ),
    "pot": Contender(_pot, "POT", "conditional gradient"),
    "pot_entropic": Contender(
        _pot_entropic, "POT", "entropic", largest=(30, "more than a second a problem at n = 100")
    ),
    "pot_batch": Contender(_pot_batch, "POT", "entropic", largest=(100, "tens of seconds at n = 300")),
    "ott": Contender(_ott, "ott-jax", "entropic"),
}

LEFT_OUT = {
    "`ot.gromov.BAPG_gromov_wasserstein`": "its couplings miss the marginals, so that its values cannot be compared",
}
