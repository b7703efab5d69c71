"""The referee's negative tests: every corruption of a good solution is rejected, for every solver."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import make_problem
from test_contract import CLAIMS, PLANS, sharp

from solvers import (
    AssignmentProblem,
    InvalidSolution,
    LazyPlan,
    QuadraticAssignmentProblem,
    Solver,
    Status,
    check,
)
from solvers.registry import solver_class
from solvers.solver import Answer


def moved_mass(s):
    """Mass moved within a column and back in another: every marginal is right, the plan is not the one claimed."""
    T = s.plan.clone()
    k, i = 0, int(T[0].sum(-1).argmax())
    j = int(T[k, i].argmax())
    other_i, other_j = (i + 1) % T.shape[-2], (j + 1) % T.shape[-1]
    step = 0.1 * T[k, i, j]
    for (r, c), sign in {(i, j): -1, (other_i, j): 1, (other_i, other_j): -1, (i, other_j): 1}.items():
        T[k, r, c] += sign * step
    return replace(s, plan=T)


def lost_mass(s):
    T = s.plan.clone()
    T.view(-1)[int(T.argmax())] *= 0.999
    return replace(s, plan=T)


def swapped_columns(s):
    return replace(s, plan=s.plan[..., [1, 0, *range(2, s.plan.shape[-1])]])


def swapped_entries(s):
    p = s.permutation.clone()
    p[0, [0, 1]] = p[0, [1, 0]]
    return replace(s, permutation=p)


def repeated_entry(s):
    p = s.permutation.clone()
    p[0, 0] = p[0, 1]
    return replace(s, permutation=p)


def unmatched_entry(s):
    p = s.permutation.clone()
    p[-1, 0] = -1
    return replace(s, permutation=p)


def entry_out_of_range(s):
    p = s.permutation.clone()
    p[0, 0] = p.shape[-1]
    return replace(s, permutation=p)


def negative_mass(s):
    T = s.plan.clone()
    T[0, :2, :2] += torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=T.dtype)
    return replace(s, plan=T)


def at_first(x, amount):
    x = x.clone()
    x.view(-1)[0] += amount
    return x


def as_nan(x):
    x = x.clone()
    x.view(-1)[0] = torch.nan
    return x


ALWAYS = {
    "lowered value": lambda s: replace(s, value=at_first(s.value, -1e-6)),
    "raised value": lambda s: replace(s, value=at_first(s.value, 1e-6)),
    "NaN value": lambda s: replace(s, value=as_nan(s.value)),
    "value of wrong shape": lambda s: replace(s, value=s.value[..., None]),
    "a status too many": lambda s: replace(s, statuses=(*s.statuses, s.status)),
    "a better status than the worst": lambda s: replace(s, statuses=(Status.TIME_LIMIT, *s.statuses[1:])),
}
BOUND = {
    "raised bound": lambda s: replace(s, lower_bound=s.value.detach() + 1e-3),
    "slightly raised bound": lambda s: replace(s, lower_bound=at_first(s.lower_bound, 1e-6)),
    "NaN bound": lambda s: replace(s, lower_bound=as_nan(s.lower_bound)),
    "bound of wrong shape": lambda s: replace(s, lower_bound=s.lower_bound[..., None]),
}
OPTIMAL = {
    "a bound that proves nothing": lambda s: replace(s, lower_bound=at_first(s.lower_bound, -1e-3)),
}
OPTIMAL_DUALS = {
    "infeasible potential": lambda s: replace(s, potentials=(at_first(s.potentials[0], 1e-3), s.potentials[1])),
    "infeasible other potential": lambda s: replace(s, potentials=(s.potentials[0], at_first(s.potentials[1], 1e-3))),
    "NaN potential": lambda s: replace(s, potentials=(as_nan(s.potentials[0]), s.potentials[1])),
    "potential of wrong shape": lambda s: replace(s, potentials=s.potentials[::-1] if s.plan is not None else None),
}
PLAN = {
    "moved mass": moved_mass,
    "lost mass": lost_mass,
    "swapped columns": swapped_columns,
    "negative mass": negative_mass,
    "NaN in the plan": lambda s: replace(s, plan=as_nan(s.plan)),
    "plan of wrong shape": lambda s: replace(s, plan=s.plan.mT),
    "missing plan": lambda s: replace(s, plan=None),
    "understated marginal error": lambda s: replace(s, marginal_error=s.marginal_error - 1e-6),
}
PERMUTATION = {
    "swapped entries": swapped_entries,
    "repeated entry": repeated_entry,
    "unmatched entry": unmatched_entry,
    "entry out of range": entry_out_of_range,
    "permutation of wrong shape": lambda s: replace(s, permutation=s.permutation[..., :-1]),
    "permutation of floats": lambda s: replace(s, permutation=s.permutation.double()),
    "missing permutation": lambda s: replace(s, permutation=None),
}


def unproven(s):
    """A claim of optimality with a bound that does not prove it, where the solver gives one."""
    bound = None if s.lower_bound is None else s.lower_bound - 1
    return replace(s, status=Status.OPTIMAL, statuses=(Status.OPTIMAL,) * len(s.statuses), lower_bound=bound)


CONVERGED = {"a proof that is none": unproven}


def corruptions(name, kind):
    cls = solver_class(name)
    found = ALWAYS | (PLAN if kind in PLANS else PERMUTATION)
    if cls.gives_bound:
        found = found | BOUND
    if cls.exact:
        found = found | OPTIMAL
        if kind in PLANS or name == "jonker_volgenant":
            found = found | {k: v for k, v in OPTIMAL_DUALS.items() if kind in PLANS or "shape" not in k}
    else:
        found = found | CONVERGED
    return found


CASES = [(name, kind, what) for name, kind in CLAIMS for what in corruptions(name, kind)]


@cache  # a corruption makes a solution of its own
def solved(name, kind):
    problem = make_problem(kind, 2, n=5, m=6 if kind in PLANS else 5)
    return problem, sharp(name).solve(problem)


@pytest.mark.parametrize(("name", "kind", "what"), CASES, ids=[f"{n}-{k.__name__}-{w}" for n, k, w in CASES])
def test_corrupted_solution_is_rejected(name, kind, what):
    problem, good = solved(name, kind)
    assert check(problem, good) == []
    if isinstance(good.plan, LazyPlan):  # the corruptions are of a stored one, which is as good
        good = replace(good, plan=good.plan.dense())
        assert check(problem, good) == []
    bad = corruptions(name, kind)[what](good)
    faults = check(problem, bad)
    assert faults, f"{what} was accepted"
    assert all(len(f) > 10 for f in faults)


def test_a_solution_of_another_problem_is_rejected():
    for name, kind in CLAIMS:
        good = sharp(name).solve(make_problem(kind, 2, n=5, seed=1))
        assert check(make_problem(kind, 2, n=5, seed=2), good) != []


def test_one_bad_problem_of_a_batch_is_named():
    problem = make_problem(AssignmentProblem, 7, n=4)
    good = sharp("jonker_volgenant").solve(problem)
    value = good.value.clone()
    value[5] -= 0.5
    assert any("problem 5 of the batch" in fault for fault in check(problem, replace(good, value=value)))


def test_a_huge_cost_elsewhere_does_not_blunt_the_checks():
    C = torch.rand(4, 4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64) * 1e12
    problem = AssignmentProblem(C)
    good = sharp("jonker_volgenant").solve(problem)
    assert check(problem, replace(good, value=good.value - 1e-6)) != []


def test_a_slightly_positive_potential_of_the_larger_side_is_rejected():
    problem = make_problem(AssignmentProblem, 2, n=5, m=9)
    good = sharp("jonker_volgenant").solve(problem)
    u, v = good.potentials
    size = 1e-9 * float((good.value.abs() + u.abs().sum(-1) + v.abs().sum(-1)).min())
    raised = v.clone()
    raised[0, int(v[0].argmax())] = size / 2  # below the tolerance for the value, above that for one potential
    assert check(problem, replace(good, potentials=(u, raised))) != []


def test_the_template_refuses_what_the_referee_refuses():
    class Liar(Solver):
        name = "liar"
        problem_types = (AssignmentProblem, QuadraticAssignmentProblem)
        exact = True

        def _run(self, problem, prepared, clock):
            n = problem.cost.shape[-1]
            return Answer(permutation=torch.zeros(n, dtype=torch.int64), statuses=Status.OPTIMAL)

    with pytest.raises(InvalidSolution, match="liar returned an invalid solution: the permutation is not one"):
        Liar().solve(make_problem(AssignmentProblem, n=3))
