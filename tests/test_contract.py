"""What every solver of the registry must do, on every problem type it claims; a new solver is covered by itself."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import HELD, exact_values, make_problem

from solvers import (
    AssignmentProblem,
    GraphMatchingProblem,
    LazyPlan,
    PartialTransportProblem,
    PointCloudTransportProblem,
    QuadraticAssignmentProblem,
    Status,
    TransportProblem,
    UnbalancedTransportProblem,
    check,
    make_solver,
)
from solvers.problems import PlanProblem
from solvers.registry import solver_class, solver_names, unavailable

NAMES = [name for name in solver_names() if unavailable(name) is None]
CLAIMS = [
    (name, kind)
    for name in NAMES
    for kind in solver_class(name).problem_types
    if kind is not GraphMatchingProblem  # which has no batches: see test_graph_matching.py
]
MODES = [
    (name, kind, mode)
    for name, kind in CLAIMS
    for mode in solver_class(name).differentiable
    if (kind, mode) != (PointCloudTransportProblem, "unrolled")  # it would store what a point cloud is there not to
]
each_claim = pytest.mark.parametrize(("name", "kind"), CLAIMS, ids=[f"{n}-{k.__name__}" for n, k in CLAIMS])

UNSEEDED = {"pylibmgm"}
PLANS = [TransportProblem, UnbalancedTransportProblem, PartialTransportProblem, PointCloudTransportProblem]
RECTANGULAR = {
    **{kind: [(4, 6), (6, 3)] for kind in PLANS},
    AssignmentProblem: [(3, 6), (6, 4)],
    QuadraticAssignmentProblem: [],
}


def sharp(name: str, **settings):
    """The solver at a tolerance fit for comparisons, where it has one."""
    known = {f.name for f in dataclasses.fields(solver_class(name))}
    wanted = {"tolerance": 1e-12, "max_iterations": 100_000, "reg": 0.1, "temperature": 0.1}
    if name == "local_search":  # which makes all of its iterations
        wanted["max_iterations"] = 1_000
    return make_solver(name, **{k: v for k, v in wanted.items() if k in known} | settings)


def answer(solution):
    if solution.permutation is not None:
        return solution.permutation
    return solution.plan.dense() if isinstance(solution.plan, LazyPlan) else solution.plan


def tensors(problem):
    """What a problem of its type is made of."""
    names = (f.name for f in dataclasses.fields(problem))
    return {name: getattr(problem, name) for name in names if isinstance(getattr(problem, name), torch.Tensor)}


def shapes(kind):
    return [(5, 5), *RECTANGULAR[kind]]


@each_claim
def test_is_feasible_and_agrees_with_an_exact_reference(name, kind):
    for n, m in shapes(kind):
        problem = make_problem(kind, 3, n=n, m=m, seed=n)
        solution = sharp(name).solve(problem)
        assert check(problem, solution) == []
        assert solution.status in (Status.OPTIMAL, Status.CONVERGED)
        exact = exact_values(problem)
        if solver_class(name).feasible:
            assert problem.is_feasible(answer(solution), tol=1e-9)
            assert (solution.value >= exact - 1e-9).all()
        else:
            assert not problem.is_feasible(answer(solution), tol=1e-9)
        if solver_class(name).exact:
            assert solution.status is Status.OPTIMAL
            torch.testing.assert_close(solution.value, exact, rtol=1e-9, atol=1e-9)
        if solver_class(name).gives_bound:
            assert solution.lower_bound is not None
            assert (solution.lower_bound <= exact + 1e-9).all()


@each_claim
def test_a_batch_is_a_loop(name, kind):
    problem = make_problem(kind, 2, 3, n=5)
    together = sharp(name).solve(problem)
    assert together.value.shape == (2, 3)
    for k in np.ndindex(2, 3):
        alone = sharp(name).solve(kind(**{field: t[k] for field, t in tensors(problem).items()}))
        torch.testing.assert_close(answer(together)[k], answer(alone), rtol=0, atol=1e-12)
        torch.testing.assert_close(together.value[k], alone.value, rtol=1e-12, atol=1e-12)


@each_claim
def test_shift_and_scale_of_the_cost(name, kind):
    problem = make_problem(kind, n=5)
    solver = sharp(name)
    value = solver.solve(problem).value
    if isinstance(problem, QuadraticAssignmentProblem):
        shifted = kind(problem.A, problem.B, problem.linear + 2, problem.constant)
        scaled = kind(3 * problem.A, problem.B, 3 * problem.linear, 3 * problem.constant)
        mass = 5.0
    elif isinstance(problem, PointCloudTransportProblem):
        a, b, mass = problem.a, problem.b, 1.0
        left, right, zero = (torch.full((5, 1), t, dtype=torch.float64) for t in (1.0, -1.0, 0.0))
        shifted = kind(torch.cat([problem.x, left, zero], -1), torch.cat([problem.y, zero, right], -1), a, b)
        scaled = kind(3**0.5 * problem.x, 3**0.5 * problem.y, a, b)
    else:
        others = {field: t for field, t in tensors(problem).items() if field != "cost"}
        shifted = kind(problem.cost + 2, **others)
        prices = {"reach": 3 * problem.reach} if kind is UnbalancedTransportProblem else {}
        scaled = kind(3 * problem.cost, **others | prices)
        mass = 5.0 if isinstance(problem, AssignmentProblem) else problem.reference_mass
    if kind is not UnbalancedTransportProblem:  # a plan of another mass may then be better
        torch.testing.assert_close(solver.solve(shifted).value, value + 2 * mass, rtol=1e-9, atol=1e-9)
    units = {k: 3 * v for k, v in solver.settings.items() if k in ("reg", "temperature")}
    torch.testing.assert_close(sharp(name, **units).solve(scaled).value, 3 * value, rtol=1e-9, atol=1e-9)


@each_claim
def test_renumbering_the_nodes_renumbers_the_answer(name, kind):
    problem = make_problem(kind, n=5, seed=4)
    row, column = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 4, 2, 0, 3])
    if isinstance(problem, QuadraticAssignmentProblem):
        A, B = problem.A[row][:, row], problem.B[column][:, column]
        renumbered = kind(A, B, problem.linear[row][:, column], problem.constant)
    elif isinstance(problem, PointCloudTransportProblem):
        renumbered = kind(problem.x[row], problem.y[column], problem.a[row], problem.b[column])
    elif isinstance(problem, PlanProblem):
        held = {name: getattr(problem, name) for name in HELD.get(kind, {})}
        renumbered = kind(problem.cost[row][:, column], problem.a[row], problem.b[column], **held)
    else:
        renumbered = kind(problem.cost[row][:, column])
    before, after = sharp(name).solve(problem), sharp(name).solve(renumbered)
    torch.testing.assert_close(after.value, before.value, rtol=1e-9, atol=1e-9)
    if before.permutation is None:
        torch.testing.assert_close(answer(after), answer(before)[row][:, column], rtol=1e-8, atol=1e-9)
    else:
        torch.testing.assert_close(column[after.permutation], before.permutation[row])


@each_claim
def test_float32_agrees_with_float64_and_stays_float32(name, kind):
    problem = make_problem(kind, 4, n=5)
    single = make_problem(kind, 4, n=5, dtype=torch.float32)
    wide, narrow = sharp(name, **_loose(name)).solve(problem), make_solver(name, **_loose(name)).solve(single)
    torch.testing.assert_close(narrow.value, wide.value, rtol=2e-4, atol=2e-4)
    assert narrow.value.dtype == torch.float64
    for tensor in (narrow.plan, *(narrow.potentials or ())):
        assert tensor is None or tensor.dtype == torch.float32


def _loose(name: str) -> dict[str, float]:
    known = {f.name for f in dataclasses.fields(solver_class(name))}
    return {k: v for k, v in {"tolerance": 1e-5, "reg": 0.1, "temperature": 0.1}.items() if k in known}


@each_claim
def test_the_same_seed_gives_the_same_answer(name, kind):
    problem = make_problem(kind, 3, n=6)
    if name in UNSEEDED:
        pytest.skip("not all of its random choices can be seeded")
    first, second = (make_solver(name, seed=7).solve(problem) for _ in range(2))
    assert torch.equal(answer(first), answer(second))
    assert torch.equal(first.value, second.value)


@each_claim
def test_the_time_limit_is_honoured(name, kind):
    n = solver_class(name).max_size or 40
    problem = make_problem(kind, 8, n=n)
    if solver_class(name).unavailable(problem):  # its licence takes small problems only
        problem = make_problem(kind, 8, n=10)
    make_solver(name).solve(make_problem(kind, 8, n=2))  # compiled
    start = time.perf_counter()
    solution = make_solver(name, time_limit=0.0).solve(problem)
    assert time.perf_counter() - start < 5
    assert solution.status in (Status.TIME_LIMIT, Status.OPTIMAL, Status.CONVERGED)
    assert check(problem, solution) == []
    assert answer(solution) is not None
    with pytest.raises(ValueError, match="time_limit"):
        make_solver(name, time_limit=-1.0)


@each_claim
def test_inputs_are_never_modified(name, kind):
    problem = make_problem(kind, 2, n=5)
    fields = {field: t.numpy().copy() for field, t in tensors(problem).items()}
    for array in fields.values():
        array.flags.writeable = False
    before = {k: v.copy() for k, v in fields.items()}
    make_solver(name).solve(kind(**fields))
    for field, array in fields.items():
        np.testing.assert_array_equal(array, before[field])
    shared = {k: torch.from_numpy(v.copy()) for k, v in before.items()}
    make_solver(name).solve(kind(**shared))
    for field, tensor in shared.items():
        np.testing.assert_array_equal(tensor.numpy(), before[field])


@each_claim
def test_threads_may_solve_at_the_same_time(name, kind):
    quadratic = kind is QuadraticAssignmentProblem  # these take long enough to meet
    problems = [make_problem(kind, 1 if quadratic else 20, n=6, seed=k) for k in range(4 if quadratic else 8)]
    alone = [make_solver(name).solve(p).value for p in problems]
    tolerance = 0.2 if name in UNSEEDED else 0
    before = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        together = [s.value for s in pool.map(make_solver(name).solve, problems)]
    assert torch.get_num_threads() == before
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=0)


@each_claim
def test_memory_layout_does_not_matter(name, kind):
    problem = make_problem(kind, 2, n=5)

    def strided(t):
        return t.mT.contiguous().mT if t.ndim == 3 else t

    twin = kind(**{field: strided(t) for field, t in tensors(problem).items()})
    a, b = make_solver(name).solve(problem), make_solver(name).solve(twin)
    torch.testing.assert_close(answer(a), answer(b), rtol=0, atol=1e-12)


@each_claim
def test_the_smallest_and_the_flattest_problems(name, kind):
    one = make_solver(name).solve(make_problem(kind, n=1))
    if kind is not UnbalancedTransportProblem:  # the mass of whose plan depends on the cost
        assert answer(one).flatten().tolist() in ([0], [pytest.approx(HELD.get(kind, {}).get("mass", 1.0))])
    matrices = (
        torch.full((4, 4), c)
        for c in (1.0, 2.0)[: 2 if kind in (QuadraticAssignmentProblem, PointCloudTransportProblem) else 1]
    )
    flat = kind(*matrices, **HELD.get(kind, {}))
    solution = make_solver(name).solve(flat)
    if kind is UnbalancedTransportProblem and not solver_class(name).exact:
        assert (solution.value >= exact_values(flat) - 1e-6).all()
    else:
        torch.testing.assert_close(solution.value, exact_values(flat), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kind", "mode"), MODES, ids=[f"{n}-{k.__name__}-{m}" for n, k, m in MODES])
def test_gradients_are_those_of_finite_differences(name, kind, mode):
    settings = {"gradient": mode} if len(solver_class(name).differentiable) > 1 else {}
    solver = sharp(name, **settings)
    for n, m in [(4, 4), *RECTANGULAR[kind]]:
        g = torch.Generator().manual_seed(n)
        C = torch.rand(2, n, m, generator=g, dtype=torch.float64, requires_grad=True)
        x = torch.randn(2, n, generator=g, dtype=torch.float64, requires_grad=True)
        y = torch.randn(2, m, generator=g, dtype=torch.float64, requires_grad=True)

        def value(C, x, y):
            if kind is AssignmentProblem:
                return solver.solve(kind(C)).value + 0 * (x.sum() + y.sum())
            if kind is PointCloudTransportProblem:
                return solver.solve(kind(C[..., :2], C[..., :2, :].mT, x.softmax(-1), y.softmax(-1))).value
            return solver.solve(kind(C, x.softmax(-1), y.softmax(-1), **HELD.get(kind, {}))).value

        # through torch's own graph, which is slow, along random directions
        assert torch.autograd.gradcheck(value, (C, x, y), eps=1e-6, atol=1e-6, fast_mode=mode == "unrolled")


@each_claim
def test_another_type_of_problem_is_refused_by_name(name, kind):
    others = {TransportProblem, AssignmentProblem, QuadraticAssignmentProblem} - set(solver_class(name).problem_types)
    for other in others:
        with pytest.raises(TypeError, match=rf"{name} solves a .*{kind.__name__}.*not a {other.__name__}"):
            make_solver(name).solve(make_problem(other, n=3))


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_says_what_it_is(name):
    cls = solver_class(name)
    assert cls.name == name
    assert cls.reference
    assert cls.problem_types
    assert set(cls.devices) <= {"cpu", "cuda"}
    if cls.max_size is not None:
        too_large = make_problem(cls.problem_types[0], n=cls.max_size + 1)
        with pytest.raises(ValueError, match=f"n ≤ {cls.max_size}.*n = {cls.max_size + 1}"):
            make_solver(name).solve(too_large)


@pytest.mark.gpu
@each_claim
def test_a_problem_on_the_gpu_is_answered_on_the_gpu(name, kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    problem = make_problem(kind, 3, n=5)
    here, there = sharp(name).solve(problem), sharp(name).solve(problem.to("cuda"))
    assert answer(there).device.type == "cuda"
    assert check(problem.to("cuda"), there) == []
    torch.testing.assert_close(there.value.cpu(), here.value, rtol=1e-9, atol=1e-9)
