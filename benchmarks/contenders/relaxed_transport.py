"""Transport of other kinds, each to its plan: unbalanced, partial (exact or entropic), and between point clouds.

All entropic ones are at ε = 0.05. Unbalanced mass costs ρ = 0.5 on either side; 0.7 of the mass is carried where a part
of it is. Points are in three dimensions and the cost is the squared distance.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import ot

from benchmarks import common
from benchmarks.contenders import Call, Contender, Instance, one_problem
from benchmarks.contenders.sinkhorn import NEVER
from solvers import TransportProblem

REG, REACH, MASS = 0.05, 0.5, 0.7
TOLERANCES = {"float32": 1e-5, "float64": 1e-6}
MAX_ITERATIONS = 5000


def _our_unbalanced(instance: Instance) -> Call:
    (problem,) = common.of_commit("solvers", "UnbalancedTransportProblem")
    solver = _converging(instance)
    cost, a, b = instance.tensors()
    return lambda: common.solved(solver.solve(problem(cost, a, b, reach=REACH))).plan


def _our_partial(instance: Instance, exact: bool) -> Call:
    (problem,) = common.of_commit("solvers", "PartialTransportProblem")
    solver = common.ours("emd") if exact else _converging(instance)
    cost, a, b = instance.tensors()
    return lambda: common.solved(solver.solve(problem(cost, a, b, MASS))).plan


def _converging(instance: Instance) -> Any:
    return common.ours("sinkhorn", reg=REG, tolerance=TOLERANCES[instance.dtype], max_iterations=MAX_ITERATIONS)


def _pot_unbalanced(instance: Instance) -> Call:
    cost, a, b = instance.numpy()
    settings = {"reg_type": "entropy", "numItermax": MAX_ITERATIONS, "stopThr": TOLERANCES[instance.dtype]}
    return lambda: [
        ot.unbalanced.sinkhorn_unbalanced(*w, C, REG, REACH, **settings) for *w, C in zip(a, b, cost, strict=True)
    ]


def _pot_partial(instance: Instance) -> Call:
    cost, a, b = instance.numpy()
    return lambda: [ot.partial.partial_wasserstein(*w, C, m=MASS) for *w, C in zip(a, b, cost, strict=True)]


def _pot_partial_entropic(instance: Instance) -> Call:
    cost, a, b = instance.numpy()
    settings = {"m": MASS, "numItermax": MAX_ITERATIONS, "stopThr": TOLERANCES[instance.dtype]}
    return lambda: [
        ot.partial.entropic_partial_wasserstein(*w, C, REG, **settings) for *w, C in zip(a, b, cost, strict=True)
    ]


def _our_points(instance: Instance, iterations: int, stored: bool) -> Call:
    """From the points to the value; ``stored`` computes the cost first and keeps it."""
    (problem,) = common.of_commit("solvers", "PointCloudTransportProblem")
    solver = common.ours("sinkhorn", reg=REG, tolerance=NEVER, max_iterations=iterations)
    x, y, a, b = instance.tensors()

    def call() -> Any:
        if stored:
            made = TransportProblem((x[:, :, None] - y[:, None]).square().sum(-1), a, b)
        else:
            made = problem(x, y, a, b)
        return common.solved(solver.solve(made), "ITERATION_LIMIT").value

    return call


def _pot_points(instance: Instance, iterations: int) -> Call:
    one_problem(instance)
    x, y, a, b = (z[0] for z in instance.numpy())
    settings = {"reg": REG, "lazy": True, "max_iter": iterations, "tol": 0.0, "method": "sinkhorn"}

    def call() -> Any:
        answer = ot.solve_sample(x, y, a, b, **settings)
        return np.atleast_1d(answer.value_linear)

    return call


UNBALANCED = {
    "sinkhorn": Contender(_our_unbalanced, "matchmark", "relaxed scaling", ("cpu", "cuda")),
    "pot": Contender(_pot_unbalanced, "POT", "relaxed scaling"),
}
PARTIAL = {
    "emd": Contender(partial(_our_partial, exact=True), "matchmark", "simplex"),
    "pot": Contender(_pot_partial, "POT", "simplex"),
}
PARTIAL_ENTROPIC = {
    "sinkhorn": Contender(partial(_our_partial, exact=False), "matchmark", "relaxed scaling", ("cpu", "cuda")),
    "pot": Contender(_pot_partial_entropic, "POT", "Dykstra"),
}
POINTS = {
    "sinkhorn": Contender(partial(_our_points, stored=False), "matchmark", "without the cost", ("cpu", "cuda")),
    "sinkhorn_stored": Contender(
        partial(_our_points, stored=True),
        "matchmark",
        "with the cost",
        ("cpu", "cuda"),
        largest=(5000, "the cost takes gigabytes"),
    ),
    "pot_lazy": Contender(_pot_points, "POT", "without the cost"),
}
