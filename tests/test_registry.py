"""Names, plugins, availability, and what is said when a name is wrong."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest
import torch
from conftest import make_problem

import solvers
from solvers import (
    AssignmentProblem,
    Status,
    TransportProblem,
    UnknownSolver,
    available_solvers,
    make_solver,
    registry,
    solve,
)
from solvers.brute_force import BruteForce


@pytest.fixture
def plugin(monkeypatch):
    """Registers a class under a name as another distribution would."""

    def register(name: str, cls: type | None, module: str = "a_plugin") -> None:
        found = types.ModuleType(module)
        if cls is not None:
            found.Solver = cls
            monkeypatch.setitem(sys.modules, module, found)
        point = EntryPoint(name=name, value=f"{module}:Solver", group=registry.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        registry._plugins.cache_clear()

    yield register
    registry._plugins.cache_clear()


def test_builtin_names_are_those_of_the_design():
    assert set(available_solvers()) >= {"sinkhorn", "emd", "jonker_volgenant", "brute_force"}
    assert available_solvers(AssignmentProblem) == available_solvers(make_problem(AssignmentProblem, n=2))
    assert "sinkhorn" in available_solvers(TransportProblem)
    assert "sinkhorn" not in available_solvers(AssignmentProblem)


def test_wrong_names_are_answered_with_the_nearest():
    problem = make_problem(TransportProblem, n=2)
    with pytest.raises(UnknownSolver, match="no solver 'sinkhron'; did you mean 'sinkhorn'"):
        solve(problem, "sinkhron")
    with pytest.raises(UnknownSolver, match="Known: sinkhorn, emd"):
        solve(problem, "zzz")
    with pytest.raises(TypeError, match="sinkhorn has no setting 'regg'; did you mean 'reg'"):
        solve(problem, "sinkhorn", regg=1.0)


def test_what_is_not_a_problem_is_told_so():
    with pytest.raises(TypeError, match="a Tensor is not a problem to solve; make a TransportProblem or"):
        solve(torch.eye(3))


def test_a_plugin_is_found_by_its_entry_point(plugin):
    plugin("from_elsewhere", BruteForce)
    assert "from_elsewhere" in available_solvers(AssignmentProblem)
    assert solve(make_problem(AssignmentProblem, n=3), "from_elsewhere").status is Status.OPTIMAL


def test_two_solvers_of_one_name_are_an_error(plugin):
    plugin("emd", BruteForce)
    with pytest.raises(ImportError, match="two solvers are called 'emd'"):
        registry.solver_names()


def test_a_plugin_that_cannot_be_imported_is_unavailable_with_the_reason(plugin):
    plugin("broken", None, module="a_module_that_is_not_there")
    assert "broken" not in available_solvers()
    assert "a_module_that_is_not_there" in registry.unavailable("broken")


def test_an_unavailable_solver_answers_with_its_reason(plugin):
    class Licensed(BruteForce):
        @classmethod
        def unavailable(cls, problem=None):
            return "the licence allows n ≤ 2" if problem is not None and problem.cost.shape[-1] > 2 else None

    plugin("licensed", Licensed)
    assert "licensed" in available_solvers()
    assert solve(make_problem(AssignmentProblem, n=2), "licensed").status is Status.OPTIMAL
    solution = solve(make_problem(AssignmentProblem, 2, n=3), "licensed")
    assert solution.status is Status.UNAVAILABLE
    assert solution.message == "the licence allows n ≤ 2"
    assert solution.permutation is None
    assert torch.isnan(solution.value).all()
    assert solution.value.shape == (2,)


def test_a_solution_reads_well():
    solution = make_solver("emd").solve(make_problem(TransportProblem, n=3))
    assert "OPTIMAL" in repr(solution)
    assert "emd" in repr(solution)
    assert solution.status.sentence.startswith("Proven optimal")
    assert set(solvers.__all__) <= set(dir(solvers))
