"""The independent referee: everything a solution claims is computed again from the problem and compared.

No solver grades itself. ``check`` returns the list of what is wrong, in sentences, and an empty list for a solution
that holds; the solver template calls it on every answer before it is handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from solvers.graph_matching import GraphMatchingProblem
from solvers.integrality import round_up
from solvers.kernels.assignment import solve_assignment
from solvers.kernels.referee import c_transform, rlt_leaders, survey
from solvers.lazy_plan import LazyPlan
from solvers.point_clouds import PointCloudTransportProblem
from solvers.problems import (
    AssignmentProblem,
    PlanProblem,
    Problem,
    QuadraticAssignmentProblem,
    TransportProblem,
    default_tolerance,
    paired,
)
from solvers.solution import Solution, Status

Potentials = tuple[Tensor, Tensor]
TINY = torch.finfo(torch.float64).tiny


class InvalidSolution(RuntimeError):
    """A solver returned an answer that the referee refuses: a defect of the solver, not of the input."""


@dataclass(frozen=True)
class Facts:
    """What the referee computes for itself about an answer, float64, shape ``(*batch,)`` each.

    ``finite`` says of which plans every entry is, ``lowest`` is the least of them.
    """

    value: Tensor
    marginal_error: Tensor | None
    lower_bound: Tensor | None
    transformed: Potentials | None
    finite: Tensor | None = None
    lowest: Tensor | None = None


def recompute(problem: Problem, x: Tensor | LazyPlan, potentials: Potentials | None) -> Facts:
    """Value, marginal error and lower bound of a plan or permutation ``x``, from the problem alone.

    Whatever the potentials are, the c-transform f_i = min_j C_ij − g_j (Villani, Optimal Transport, 2009, ch. 5)
    makes them feasible, so the dual objective (Σ a f + Σ b g where both marginals are fixed) is a true lower bound. For
    a rectangular assignment the potential of the larger side is first cut to g ≤ 0, as the inequality constraints of
    its unmatched members demand. The dual variables of a quadratic assignment prove its leaders, and these a bound,
    which integer costs round up; those of a graph matching are messages and prices. Of a lazy plan all is computed in
    one reading of the cost.
    """
    if isinstance(x, LazyPlan):
        assert isinstance(problem, PointCloudTransportProblem)
        g = (x.g if potentials is None else potentials[1]).detach().double()
        cost, missed, f = problem.judge(x, g)
        return Facts(cost, missed, problem.dual_objective(f, g), (f, g))
    if isinstance(problem, PointCloudTransportProblem):
        problem = problem.to_dense()  # it is no larger than the plan
    if type(problem) is TransportProblem and _is_plain(problem.cost, x):
        return _surveyed(problem, x, potentials)
    value = problem.objective(x)
    if isinstance(problem, QuadraticAssignmentProblem):
        bound = None if potentials is None else _rlt_bound(problem, *potentials)
        return Facts(value, None, bound, None)
    if isinstance(problem, GraphMatchingProblem):
        return Facts(value, None, None if potentials is None else _pairwise_bound(problem, *potentials), None)
    error = problem.marginal_error(x) if isinstance(problem, PlanProblem) else None
    assert isinstance(problem, PlanProblem | AssignmentProblem)
    if potentials is None:
        return Facts(value, error, None, None)
    f, g = transformed = _c_transform(problem, potentials)
    if isinstance(problem, PlanProblem):
        bound = problem.dual_objective(f, g)
    else:
        bound = f.sum(-1) + g.sum(-1)
    return Facts(value, error, bound, transformed)


def check(problem: Problem, solution: Solution, tol: float | None = None, facts: Facts | None = None) -> list[str]:
    """What is wrong with ``solution`` as an answer to ``problem``; nothing for a valid one.

    Checked: shape, finiteness, feasibility (marginals or permutation), the value and the marginal error against their
    recomputation, dual feasibility of the potentials of an optimal solution, the lower bound against the value and
    against the bound that the potentials prove, and that OPTIMAL is a proof.

    Args:
        problem: the problem that was to be solved.
        solution: its claimed solution.
        tol: relative tolerance; 1e-9 in float64 and 1e-5 in float32 when left out.
        facts: ``recompute`` of this very problem and answer, when the caller has just done it.
    """
    if solution.status is Status.UNAVAILABLE:
        return [] if solution.plan is None and solution.permutation is None else ["UNAVAILABLE, yet it has an answer"]
    tol = default_tolerance(problem.dtype) if tol is None else tol
    problem = problem.detach()
    x = solution.plan if isinstance(problem, PlanProblem) else solution.permutation
    if isinstance(problem, PointCloudTransportProblem) and not isinstance(x, LazyPlan):
        problem = problem.to_dense()
    if faults := _shape_faults(problem, x, solution):
        return faults
    assert x is not None
    x = x.detach()
    usable = ~_having(solution, Status.NON_FINITE, problem)
    if isinstance(problem, PlanProblem):
        facts = recompute(problem, x, solution.potentials) if facts is None else facts
        faults = _plan_faults(problem, x, facts, usable, tol)
    else:
        faults = _matching_faults(problem, x)
    if faults:
        return faults
    facts = recompute(problem, x, solution.potentials) if facts is None else facts
    scale = _Scale(problem, x, solution.potentials)
    value = solution.value.detach() if solution.value.requires_grad else solution.value
    faults = []
    if value is not facts.value:  # the template hands out the very numbers recomputed here
        wrong = usable & scale.exceeded((value - facts.value).abs(), facts.value, tol)
        faults = _where(wrong, "the value is not the objective's", value, facts.value)
    return [
        *faults,
        *_marginal_faults(problem, solution, facts, usable, tol),
        *_dual_faults(problem, solution, facts, scale, tol),
        *_bound_faults(problem, solution, facts, scale, usable, tol),
    ]


def _rlt_bound(problem: QuadraticAssignmentProblem, U: Tensor, V: Tensor) -> Tensor:
    """What any dual variables ``(*batch, n, n, n)`` of the level-1 RLT prove (``kernels.dual_ascent``)."""
    batch = problem.batch_shape
    bound = torch.empty(batch.numel(), dtype=torch.float64)
    parts = (problem.A, problem.B, problem.linear, U, V)
    flat = [np.ascontiguousarray(x.double().cpu().numpy()).reshape(-1, *x.shape[len(batch) :]) for x in parts]
    for k in range(len(bound)):
        leaders = rlt_leaders(*(x[k] for x in flat))
        _, _, v = solve_assignment(leaders[None])
        bound[k] = (leaders - v).min(-1).sum() + v.sum()  # whatever v is, these potentials are feasible
    return round_up(problem, bound.reshape(batch).to(problem.device) + problem.constant)


def _pairwise_bound(problem: GraphMatchingProblem, messages: Tensor, prices: Tensor) -> Tensor:
    """What any messages and prices of a graph matching prove (``kernels.pairwise_dual``): a number, float64.

    A message a_ti[k] moves a cost from the table t = {i, j} to label k of node i. The messages stand in the order of
    the tables, by i < j, first those to the labels of i, then of j; a label is an allowed right node, in order, or last
    to stay unmatched. A price of a right node moves a cost to it; none is positive where it may stay free.
    """
    L, q = (x.detach().double().cpu().numpy() for x in (problem.linear, problem.pair_costs))
    a, v = (x.detach().double().cpu().numpy() for x in (messages, prices))
    (n, m), complete = L.shape, bool(problem.complete)
    pairs = problem.pairs.cpu().numpy()
    turned = pairs[:, :1] > pairs[:, 2:3]
    i, s, j, t = np.where(turned, pairs[:, [2, 3, 0, 1]], pairs).T
    theta = np.concatenate([L, np.full((n, 1), np.inf if complete else 0.0)], 1)
    allowed, bound, at = np.isfinite(theta), 0.0, 0
    columns, place = [np.flatnonzero(row) for row in allowed], allowed.cumsum(1) - 1
    keys, where = np.unique(i * n + j, return_inverse=True)
    groups = np.split(np.argsort(where, kind="stable"), np.bincount(where).cumsum()[:-1])
    for key, members in zip(keys.tolist(), groups, strict=False):  # of no pairs, split makes one group
        ends = divmod(key, n)
        table = np.zeros([len(columns[node]) for node in ends])
        table[place[ends[0], s[members]], place[ends[1], t[members]]] = q[members]
        both = np.flatnonzero(allowed[list(ends), :m].all(0))
        table[place[ends[0], both], place[ends[1], both]] = np.inf  # one right node cannot have two
        sides = []
        for node in ends:
            side = a[at : at + len(columns[node])]
            theta[node, columns[node]] += side
            sides.append(side)
            at += len(side)
        bound += float((table - sides[0][:, None] - sides[1]).min())
    v = v if complete and n == m else np.minimum(v, 0.0)
    theta[:, :m] -= v
    whole = bound + theta.min(1).sum() + v.sum()
    return torch.tensor(whole, dtype=torch.float64, device=problem.device) + problem.constant


def _is_plain(C: Tensor, x: Tensor) -> bool:
    """Whether a cost and a plan that may be one of it lie in the CPU's memory in the usual order."""
    return x.shape == C.shape and C.device.type == x.device.type == "cpu" and C.is_contiguous() and x.is_contiguous()


def _surveyed(problem: TransportProblem, T: Tensor, potentials: Potentials | None) -> Facts:
    """``recompute`` in one compiled pass over cost and plan."""
    batch = problem.batch_shape
    g = None if potentials is None else potentials[1].detach().double()
    plain = g is not None and g.shape == problem.b.shape and not bool(g.isnan().any())
    shift = g if g is not None and plain else torch.zeros(problem.b.shape, dtype=torch.float64)
    parts = (problem.cost, T, problem.a, problem.b, shift)
    arrays = survey(*(x.contiguous().numpy().reshape(batch.numel(), *x.shape[len(batch) :]) for x in parts))
    value, error, lowest, f, bound = (torch.from_numpy(x).reshape((*batch, *x.shape[1:])) for x in arrays)
    finite = torch.isfinite(error)
    if g is None:
        return Facts(value, error, None, None, finite, lowest)
    if not plain:
        f = (problem.cost - g.unsqueeze(-2)).amin(-1)
        bound = problem.dual_objective(f, g)
    return Facts(value, error, bound, (f, g), finite, lowest)


def _rows_first(problem: PlanProblem | AssignmentProblem) -> bool:
    """Whether the rows are the side that gets the c-transform: always, but for an assignment with n > m."""
    return not (isinstance(problem, AssignmentProblem) and problem.cost.shape[-2] > problem.cost.shape[-1])


def _c_transform(problem: PlanProblem | AssignmentProblem, potentials: Potentials) -> Potentials:
    """(the best potential of the one side given the other's, the other's), float64."""
    f, g = (p.detach().double() for p in potentials)
    C = problem.cost.detach()
    if not _rows_first(problem):
        C, g = C.mT, f
    if isinstance(problem, AssignmentProblem) and C.shape[-2] != C.shape[-1]:
        g = g.clamp(max=0)
    if C.device.type == "cpu" and C.is_contiguous() and not bool(g.isnan().any()):
        n, m = C.shape[-2:]
        rows = c_transform(C.numpy().reshape(-1, n, m), g.contiguous().numpy().reshape(-1, m))
        return torch.from_numpy(rows).reshape(C.shape[:-1]), g
    return (C - g.unsqueeze(-2)).amin(-1), g


@dataclass(frozen=True)
class _Scale:
    """The size of the terms summed into value and bound, to which errors are relative.

    Only the terms in use count: one huge cost on a forbidden pair must not make every check loose.
    """

    problem: Problem
    x: Tensor | LazyPlan
    potentials: Potentials | None

    @cached_property
    def size(self) -> Tensor:
        """Shape ``(*batch,)``, float64."""
        return _terms(self.problem, self.x, self.potentials)

    @property
    def mean(self) -> Tensor:
        """The same per unit of mass or matched pair: the size of one potential."""
        problem = self.problem
        assert isinstance(problem, PlanProblem | AssignmentProblem)
        return self.size / (
            problem.reference_mass if isinstance(problem, PlanProblem) else min(problem.cost.shape[-2:])
        )

    def exceeded(self, difference: Tensor, near: Tensor, tol: float) -> Tensor:
        """Where a difference is beyond ``tol`` × the size, or NaN; the value ``near`` is a smaller size at no cost."""
        over = ~(difference <= tol * near.abs())
        return ~(difference <= tol * self.size) if bool(over.any()) else over


def _terms(problem: Problem, x: Tensor | LazyPlan, potentials: Potentials | None) -> Tensor:
    if isinstance(problem, GraphMatchingProblem):
        assert isinstance(x, Tensor)
        sizes = (problem.pair_costs.abs(), problem.constant.abs(), bool(problem.complete))
        return GraphMatchingProblem(problem.linear.abs(), problem.pairs, *sizes).objective(x) + TINY
    if isinstance(problem, QuadraticAssignmentProblem):
        assert isinstance(x, Tensor)
        parts = (problem.A.abs(), problem.B.abs(), problem.linear.abs(), problem.constant.abs())
        return QuadraticAssignmentProblem(*parts).objective(x) + TINY
    assert isinstance(problem, PlanProblem | AssignmentProblem)
    if isinstance(x, LazyPlan):
        assert isinstance(problem, PointCloudTransportProblem)
        size, a, b = problem.objective(x), problem.a, problem.b  # no cost is negative
    elif isinstance(problem, PlanProblem):
        size, a, b = (problem.cost * x).abs().sum((-2, -1), dtype=torch.float64), problem.a, problem.b
        if not isinstance(problem, TransportProblem):  # what the marginals cost
            size = size + (problem.objective(x) - problem.transport_cost(x)).abs()
    else:
        ones = torch.ones((), dtype=torch.float64, device=problem.device)
        size, a, b = problem.matched_costs(x).abs().sum(-1, dtype=torch.float64), ones, ones
    if potentials is not None:
        f, g = (p.detach().double().abs() for p in potentials)
        size = size + paired(a, f) + paired(b, g)
    return size + TINY


# ------------------------------------------------------------------------------------------------------- the checks


def _where(wrong: Tensor, sentence: str, *figures: Tensor) -> list[str]:
    """The sentence, with the figures of the first problem it is true of; nothing where it is true of none."""
    if not bool(wrong.any()):
        return []
    k = int(wrong.reshape(-1).nonzero()[0])
    shown = " against ".join(f"{f.expand(wrong.shape).reshape(-1)[k].item():.9g}" for f in figures)
    return [sentence + (f" in problem {k} of the batch" if wrong.ndim else "") + (f": {shown}" if shown else "")]


def _shape_faults(problem: Problem, x: Tensor | LazyPlan | None, solution: Solution) -> list[str]:
    if x is None:
        kind = "plan" if isinstance(problem, PlanProblem) else "permutation"
        return [f"{solution.status.name}, yet there is no {kind}"]
    batch = problem.batch_shape
    n, m = problem.shape[-2:]
    dual: tuple[tuple[int, ...], ...] = ((*batch, n), (*batch, m))
    if isinstance(problem, QuadraticAssignmentProblem):
        dual = ((*batch, n, n, n),) * 2
    elif isinstance(problem, GraphMatchingProblem):
        dual = ((problem.messages,), (m,))
    expected = (*batch, n, m) if isinstance(problem, PlanProblem) else (*batch, n)
    wanted: list[tuple[str, Tensor | LazyPlan | None, tuple[int, ...]]] = [
        ("the plan" if isinstance(problem, PlanProblem) else "the permutation", x, expected),
        ("the value", solution.value, tuple(batch)),
        ("the lower bound", solution.lower_bound, tuple(batch)),
        ("the marginal error", solution.marginal_error, tuple(batch)),
        ("the first potential", solution.potentials and solution.potentials[0], dual[0]),
        ("the second potential", solution.potentials and solution.potentials[1], dual[1]),
    ]
    faults = [
        f"{name} has shape {tuple(t.shape)} instead of {shape}"
        for name, t, shape in wanted
        if t is not None and tuple(t.shape) != shape
    ]
    if not isinstance(problem, PlanProblem) and x.dtype != torch.int64:
        faults.append(f"the permutation has dtype {x.dtype} instead of int64")
    if len(solution.statuses) != batch.numel():
        faults.append(f"{len(solution.statuses)} statuses for a batch of {batch.numel()}")
    elif solution.status is not Status.worst(solution.statuses):
        faults.append(f"the status {solution.status.name} is not the worst of the batch")
    return faults


def _plan_faults(problem: PlanProblem, T: Tensor | LazyPlan, facts: Facts, usable: Tensor, tol: float) -> list[str]:
    if isinstance(T, LazyPlan):  # its entries are exponentials, finite where their sum is
        assert isinstance(problem, PointCloudTransportProblem)
        same = T.cost.is_equal_to(problem.factored_cost())
        return [] if same else ["the plan is one between other point clouds"]
    finite, lowest = facts.finite, facts.lowest
    if finite is None or lowest is None or not bool((finite | ~usable).all()):
        finite, lowest = torch.isfinite(T).all(-1).all(-1), T.amin((-2, -1))
    return _where(usable & ~finite, "the plan has entries that are not finite") or _where(
        usable & (lowest < -tol * problem.reference_mass), "the plan has negative mass", lowest
    )


def _matching_faults(problem: Problem, p: Tensor | LazyPlan) -> list[str]:
    if isinstance(p, Tensor) and problem.is_feasible(p):
        return []
    return ["the permutation is not one: an entry is out of range, repeated or missing"]


def _marginal_faults(problem: Problem, solution: Solution, facts: Facts, usable: Tensor, tol: float) -> list[str]:
    error, claimed = facts.marginal_error, solution.marginal_error
    if not isinstance(problem, PlanProblem) or error is None:
        return []
    mass = problem.reference_mass
    faults: list[str] = []
    if claimed is not None:
        wrong = usable & ~((claimed - error).abs() <= tol * mass)
        faults += _where(wrong, "the marginal error is not the plan's", claimed, error)
    optimal, converged = (_having(solution, s, problem) for s in (Status.OPTIMAL, Status.CONVERGED))
    faults += _where(optimal & ~(error <= tol * mass), "an optimal plan misses its marginals by", error)
    if "tolerance" in solution.settings:
        allowed = (float(solution.settings["tolerance"]) + tol) * mass
        faults += _where(converged & ~(error <= allowed), "a converged plan misses its marginals by", error, allowed)
    return faults


def _dual_faults(problem: Problem, solution: Solution, facts: Facts, scale: _Scale, tol: float) -> list[str]:
    """Potentials that come with an optimal solution must be feasible: f_i + g_j ≤ C_ij."""
    if facts.transformed is None or solution.potentials is None or Status.OPTIMAL not in solution.statuses:
        return []
    assert isinstance(problem, PlanProblem | AssignmentProblem)
    optimal = _having(solution, Status.OPTIMAL, problem)
    first, second = solution.potentials if _rows_first(problem) else solution.potentials[::-1]
    first, best = first.detach().double(), facts.transformed[0]
    excess = (first - best).amax(-1)
    faults: list[str] = []
    if not bool((excess <= 0).all()):
        feasible = first - best <= tol * (first.abs() + best.abs() + scale.mean.unsqueeze(-1))
        faults += _where(optimal & ~feasible.all(-1), "the potentials are not dual feasible, by", excess)
    if isinstance(problem, AssignmentProblem) and problem.cost.shape[-2] != problem.cost.shape[-1]:
        highest = second.detach().double().amax(-1)
        faults += _where(optimal & ~(highest <= tol * scale.mean), "the larger side has a positive potential", highest)
    return faults


def _bound_faults(
    problem: Problem, solution: Solution, facts: Facts, scale: _Scale, usable: Tensor, tol: float
) -> list[str]:
    bound, value = solution.lower_bound, facts.value
    if bound is None:
        return ["OPTIMAL, yet there is no lower bound"] if Status.OPTIMAL in solution.statuses else []
    faults: list[str] = []
    if facts.lower_bound is not None and bound is not facts.lower_bound:
        raised = usable & scale.exceeded(bound - facts.lower_bound, facts.lower_bound, tol)
        faults += _where(raised, "the lower bound is above the one the potentials prove", bound, facts.lower_bound)
    above = usable & scale.exceeded(bound - value, value, tol)
    if isinstance(problem, PlanProblem) and facts.marginal_error is not None and bool(above.any()):
        # A plan that misses its marginals by e can be cheaper than any feasible one, by at most max|C| e.
        below = value + problem.largest_cost() * facts.marginal_error
        above = usable & scale.exceeded(bound - below, value, tol)
    faults += _where(above, "the lower bound is above the value", bound, value)
    if Status.OPTIMAL not in solution.statuses:
        return faults
    unproven = _having(solution, Status.OPTIMAL, problem) & scale.exceeded(value - bound, value, tol)
    return faults + _where(unproven, "OPTIMAL is not proven: value against bound", value, bound)


def _having(solution: Solution, status: Status, problem: Problem) -> Tensor:
    """Which problems of the batch ended with this status, bool ``(*batch,)``."""
    distinct = set(solution.statuses)
    if len(distinct) == 1:
        return torch.full(problem.batch_shape, status in distinct, device=problem.device)
    held = torch.tensor([s is status for s in solution.statuses], device=problem.device)
    return held.reshape(problem.batch_shape)
