"""What the study measures: the tables, their cases, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks import common, reference
from benchmarks.contenders import Array, Contender, Instance, conditional_transport, emd, gromov_wasserstein, sinkhorn

REG, ITERATIONS, TEMPERATURE = 0.05, 100, 0.1
MAX_ITERATIONS = 2000  # where a tolerance is what counts
REGS = (1e-1, 5e-2, 1e-2, 1e-3, 1e-4)
BUDGETS = (10, 30, 100, 300, 1000)
REPETITIONS = 9


@dataclass(frozen=True)
class Case:
    """One instance and one task: what its contenders are timed on side by side.

    Attributes:
        table: the table its rows go to.
        what: "plan", "gradient", "loss" or "matching".
        size: "batch x n x m".
        weights: "random" or "uniform", as in `common.transport_instance`.
        task: the arguments of a contender's ``make``, such as ``reg`` and ``iterations``.
        repetitions: timed runs of each contender, after one that warms up and is judged.
    """

    table: str
    what: str
    size: str
    dtype: str = "float64"
    weights: str = "random"
    task: Mapping[str, float] = field(default_factory=dict)
    repetitions: int = REPETITIONS

    @property
    def key(self) -> dict[str, Any]:
        """Everything above, for JSON."""
        return asdict(self)

    @property
    def label(self) -> str:
        task = ", ".join(f"{name} {value:g}" for name, value in self.task.items())
        return " ".join(filter(None, (self.table, self.what, self.size, self.dtype, self.weights, task)))


@dataclass(frozen=True)
class Table:
    """One table of the study.

    Attributes:
        title: its heading.
        note: what a reader has to know.
        contenders: by what is asked of them.
        judge: (case, answer) → the errors of the answer, by column.
        left_out: what has no row, and why.
    """

    title: str
    note: str
    contenders: Mapping[str, Mapping[str, Contender]]
    judge: Callable[[Case, Array], dict[str, float]]
    left_out: Mapping[str, str] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------- judging


def _transport(case: Case) -> tuple[Array, Array, Array]:
    return common.transport_instance(case.size, case.weights)


def _judge_plan(case: Case, plan: Array) -> dict[str, float]:
    _, a, b = _transport(case)
    return {"marginal_error": common.marginal_error(plan, a, b)}


def _judge_plan_and_value(case: Case, plan: Array) -> dict[str, float]:
    """The value is that of the nearest feasible plan: an infeasible one may undercut the optimum."""
    cost, a, b = _transport(case)
    optimum = reference.transport_optimum(case.size, case.weights)
    gap = (common.rounded_value(cost, plan, a, b) - optimum) / np.abs(optimum)
    return _judge_plan(case, plan) | {"value_error": max(0.0, float(gap.max()))}


def _judge_sinkhorn_gradient(case: Case, gradient: Array) -> dict[str, float]:
    wanted = reference.sinkhorn_gradient(case.size, case.task["reg"])
    return {"gradient_error": reference.gradient_error(gradient, wanted)}


def _judge_conditional_transport(case: Case, answer: Array) -> dict[str, float]:
    size, temperature = case.size, case.task["temperature"]
    if case.what == "gradient":
        wanted = reference.conditional_transport_gradient(size, temperature)
        return {"gradient_error": reference.gradient_error(answer, wanted)}
    return {"value_error": common.relative_gap(answer, reference.conditional_transport(size, temperature))}


def _judge_matching(case: Case, answer: Array) -> dict[str, float]:
    T = reference.couplings(answer)
    uniform = np.full(T.shape[1], 1 / T.shape[1])
    return {
        "marginal_error": common.marginal_error(T, uniform, uniform),
        "value_error": reference.gromov_wasserstein_gap(case.size, answer),
    }


def instance(case: Case) -> Instance:
    """The instance of a case."""
    if case.table == "gromov_wasserstein":
        return Instance(common.gromov_wasserstein_instance(case.size)[:2], case.dtype)
    return Instance(_transport(case), case.dtype)


# ------------------------------------------------------------------------------------------------------ the tables

EXACT = {name: emd.SOLVERS[name] for name in ("emd", "pot")}
TABLES = {
    "sinkhorn": Table(
        "Sinkhorn",
        f"ε = {REG:g}, costs in [0, 2]: {ITERATIONS} iterations, or until the marginal error is small enough.",
        {"plan": sinkhorn.SOLVERS},
        _judge_plan,
        sinkhorn.LEFT_OUT,
    ),
    "sinkhorn_gradient": Table(
        "Sinkhorn with the gradient to the cost",
        f"ε = {REG:g}, {ITERATIONS} iterations, then the gradient of Σ ⟨C, T(C)⟩; its error is to that at the fixed "
        "point.",
        {"gradient": sinkhorn.GRADIENTS},
        _judge_sinkhorn_gradient,
        sinkhorn.LEFT_OUT,
    ),
    "emd": Table(
        "Exact transport",
        "With uniform weights and as many rows as columns, solvers of assignments compete. The value error is to a "
        "lower bound proven by dual potentials. The gradient of the optimal cost to the cost matrix is a plan.",
        {"plan": emd.SOLVERS, "gradient": emd.GRADIENTS},
        _judge_plan_and_value,
        emd.LEFT_OUT,
    ),
    "sinkhorn_accuracy": Table(
        "Sinkhorn: accuracy against time",
        "The value error is that of the nearest feasible plan to the exact optimum; for ever more iterations it ends "
        "at the bias of ε. The exact solvers are there for comparison.",
        {"plan": sinkhorn.SOLVERS, "exact": EXACT},
        _judge_plan_and_value,
        sinkhorn.LEFT_OUT,
    ),
    "conditional_transport": Table(
        "Conditional transport",
        f"Temperature {TEMPERATURE:g}, ρ = 1/2, affinity −C. The gradient is to C.",
        {"loss": conditional_transport.SOLVERS, "gradient": conditional_transport.GRADIENTS},
        _judge_conditional_transport,
        conditional_transport.LEFT_OUT,
    ),
    "gromov_wasserstein": Table(
        "Gromov–Wasserstein",
        "Local methods of a problem that is not convex. The value error is how far the energy is above that of undoing "
        "the shuffle of the instance, where 1 is the energy of matching everything with everything.",
        {"matching": gromov_wasserstein.SOLVERS},
        _judge_matching,
        gromov_wasserstein.LEFT_OUT,
    ),
}


def cases(tables: Sequence[str], quick: bool = False) -> list[Case]:
    """The cases of these tables; quick ones are tiny, for a look at whether everything runs."""
    found = _quick() if quick else _full()
    return [case for case in found if case.table in tables]


def _full() -> list[Case]:
    fixed, batches = {"reg": REG, "iterations": ITERATIONS}, ["256x49x49", "64x196x80", "375x25x25"]
    converged = {
        dtype: {"reg": REG, "iterations": MAX_ITERATIONS, "tolerance": tolerance}
        for dtype, tolerance in sinkhorn.TOLERANCES.items()
    }
    single, large = "1x1000x1000", "1x4000x4000"
    losses = {"temperature": TEMPERATURE}
    of_one_dtype = [
        *(Case("emd", "plan", size) for size in (*batches, single, large)),
        *(Case("emd", "plan", size, weights="uniform") for size in ("375x25x25", "256x49x49", single)),
        *(Case("emd", "gradient", size) for size in (*batches, single)),
        *(
            Case("sinkhorn_accuracy", "plan", "32x49x49", task={"reg": reg, "iterations": k}, repetitions=3)
            for reg in REGS
            for k in BUDGETS
        ),
        Case("sinkhorn_accuracy", "exact", "32x49x49"),
        *(Case("gromov_wasserstein", "matching", size) for size in ("32x30x30", "1x100x100", "1x300x300")),
    ]
    of_each_dtype = [
        case
        for dtype in sinkhorn.TOLERANCES
        for case in (
            *(Case("sinkhorn", "plan", size, dtype, task=converged[dtype]) for size in (*batches, single)),
            *(
                Case("conditional_transport", what, size, dtype, task=losses)
                for what in ("loss", "gradient")
                for size in (*batches, single)
            ),
        )
    ]
    in_float32 = [
        *(Case("sinkhorn", "plan", size, "float32", task=fixed) for size in (*batches, single, large)),
        *(Case("sinkhorn_gradient", "gradient", size, "float32", task=fixed) for size in (*batches, single)),
    ]
    return [*in_float32, *of_each_dtype, *of_one_dtype]


def _quick() -> list[Case]:
    few, size, losses = {"reg": 0.2, "iterations": 20}, "2x6x6", {"temperature": TEMPERATURE}
    found = [
        Case("sinkhorn", "plan", size, task=few),
        Case("sinkhorn", "plan", size, task={"reg": 0.2, "iterations": 500, "tolerance": 1e-6}),
        Case("sinkhorn_gradient", "gradient", size, task=few),
        Case("emd", "plan", size),
        Case("emd", "plan", size, weights="uniform"),
        Case("emd", "gradient", size),
        # The range of costs over the last ε is beyond the exponents of float64.
        *(
            Case("sinkhorn_accuracy", "plan", size, task={"reg": reg, "iterations": k})
            for reg in (0.1, 1e-4)
            for k in (5, 20)
        ),
        Case("sinkhorn_accuracy", "exact", size),
        Case("conditional_transport", "loss", size, task=losses),
        Case("conditional_transport", "gradient", size, task=losses),
        Case("gromov_wasserstein", "matching", size),
    ]
    return [replace(case, repetitions=2) for case in found]
