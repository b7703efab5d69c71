"""Graph matchings: the problem, its files, what messages prove, and the solvers beside trying all matchings."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SHARED, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from solvers import (
    GraphMatchingProblem,
    InvalidProblem,
    QuadraticAssignmentProblem,
    Status,
    check,
    make_solver,
    solve,
)
from solvers.dd_files import read_dd, write_dd
from solvers.kernels.pairwise_primal import energy, fuse
from solvers.kernels.random import streams
from solvers.pairwise_model import of_graph_matching, of_quadratic_assignment
from solvers.registry import available_solvers
from solvers.verify import recompute

NAMES = available_solvers(GraphMatchingProblem)
each_solver = pytest.mark.parametrize("name", NAMES)


def any_matching(n, m, seed, sparsity=0.3, complete=False, whole=False):
    """A random problem whose choices and pairs are partly left out."""
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        return rng.integers(-9, 10, shape).astype(float) if whole else rng.standard_normal(shape)

    linear = np.where(rng.random((n, m)) < sparsity, np.inf, numbers(n, m))
    if complete:
        linear[np.arange(n), rng.permutation(m)[:n]] = 0.5
    choices = np.argwhere(np.isfinite(linear)).tolist()
    pairs = [
        (*(x, y)[:: rng.choice([1, -1])],)
        for x, y in itertools.combinations(choices, 2)
        if x[0] != y[0] and x[1] != y[1] and rng.random() < 0.7
    ]
    pairs = np.array(pairs, np.int64).reshape(-1, 4)
    return GraphMatchingProblem(linear, pairs, numbers(len(pairs)), 0.25, complete=complete)


def matchings(n, m, complete):
    """Every matching of n nodes into m."""
    for p in itertools.product(range(0 if complete else -1, m), repeat=n):
        matched = [s for s in p if s >= 0]
        if len(set(matched)) == len(matched):
            yield p


def least_value(problem):
    """The optimum, by trying all matchings in Python."""
    n, m = problem.linear.shape
    pairs, costs = problem.pairs.tolist(), problem.pair_costs.tolist()

    def value(p):
        alone = sum(problem.linear[i, s].item() for i, s in enumerate(p) if s >= 0)
        return alone + sum(q for (i, s, j, t), q in zip(pairs, costs, strict=True) if p[i] == s and p[j] == t)

    return problem.constant.item() + min(value(p) for p in matchings(n, m, bool(problem.complete)))


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from((0.0, 0.3, 0.7)))


@settings(max_examples=60, deadline=None)
@given(sizes, st.booleans(), st.booleans())
def test_no_bound_is_above_the_optimum_and_small_problems_are_solved(parts, complete, whole):
    n, m, seed, sparsity = parts
    problem = any_matching(min(n, m) if complete else n, m, seed, sparsity, complete, whole)
    best = least_value(problem)
    solution = solve(problem, "mpopt", max_iterations=60)
    assert check(problem, solution) == []
    assert problem.is_feasible(solution.permutation)
    assert solution.value.item() == pytest.approx(best, abs=1e-9)
    assert solution.lower_bound.item() <= best + 1e-9


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_costs_does_not_matter(scale):
    for seed in range(4):
        problem = any_matching(8, 9, seed)
        scaled = GraphMatchingProblem(
            scale * problem.linear, problem.pairs, scale * problem.pair_costs, scale * problem.constant
        )
        one, other = (solve(x, "mpopt", max_iterations=60) for x in (problem, scaled))
        assert other.value.item() == pytest.approx(scale * one.value.item(), rel=1e-9)
        assert other.lower_bound.item() == pytest.approx(scale * one.lower_bound.item(), rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(sizes, st.booleans())
def test_any_messages_prove_a_bound(parts, complete):
    n, m, seed, sparsity = parts
    problem = any_matching(min(n, m) if complete else n, m, seed, sparsity, complete)
    rng = np.random.default_rng(seed)
    duals = (torch.from_numpy(rng.standard_normal(size)) for size in (problem.messages, m))
    x = solve(problem, "mpopt", max_iterations=1).permutation
    assert recompute(problem, x, tuple(duals)).lower_bound.item() <= least_value(problem) + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_a_quadratic_assignment_is_a_complete_graph_matching(n, dtype):
    problem = make_problem(QuadraticAssignmentProblem, n=n, dtype=dtype)
    written = GraphMatchingProblem.from_quadratic_assignment(problem)
    p = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(k)) for k in range(20)])
    torch.testing.assert_close(written.objective(p), problem.objective(p), rtol=1e-5, atol=1e-5)
    model, same = of_graph_matching(written), of_quadratic_assignment(tuple(_matrices(problem)))
    assert np.array_equal(model.ends, same.ends)
    allowed = model.table < model.prohibitive
    np.testing.assert_allclose(model.table[allowed], same.table[allowed], rtol=1e-5, atol=1e-5)
    whole, direct = (solve(x, "mpopt", max_iterations=100) for x in (written, problem))
    torch.testing.assert_close(whole.value, direct.value, rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidProblem, match=r"not a batch of \(3,\)"):
        GraphMatchingProblem.from_quadratic_assignment(make_problem(QuadraticAssignmentProblem, 3, n=2))


def _matrices(problem):
    return (x.double().numpy() for x in (problem.A, problem.B, problem.linear))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_a_fusion_is_the_best_switch_of_whole_paths_and_cycles(n, seed):
    rng = np.random.default_rng(seed)
    problem = any_matching(n, n, seed, 0.0)
    model = of_graph_matching(problem)
    x, y = (np.array([rng.permutation(n)[i] if rng.random() < 0.8 else n for i in range(n)]) for _ in range(2))
    for z in (x, y):  # a right node once
        for i in range(n):
            z[i] = n if z[i] in z[:i] else z[i]
    fused = fuse(model, x, y, streams(0, 1)[0])
    right = torch.tensor(np.where(fused < n, fused, -1))
    assert problem.is_feasible(right)
    assert all(fused[i] in (x[i], y[i]) for i in range(n))
    assert energy(model, fused) == pytest.approx(problem.objective(right).item() - 0.25, abs=1e-9)
    links = sparse.csr_matrix((x[:, None] == y) & (y < n) & (x != y)[:, None])
    parts = connected_components(links, directed=False)[1]
    differing = np.unique(parts[x != y])
    best = np.inf
    for count in range(len(differing) + 1):
        for chosen in itertools.combinations(differing, count):
            best = min(best, energy(model, np.where(np.isin(parts, chosen), y, x)))
    assert energy(model, fused) == pytest.approx(best, abs=1e-9)


@each_solver
@pytest.mark.parametrize("complete", [False, True])
def test_answers_are_feasible_and_no_better_than_the_optimum(name, complete):
    for seed in range(6):
        problem = any_matching(4, 5, seed, complete=complete)
        try:
            solution = solve(problem, name)
        except Exception as error:
            if name != "pylibmgm" or "permutation is not one" not in str(error):
                raise
            continue  # a greedy completion may not be possible
        assert check(problem, solution) == []
        assert solution.value.item() >= least_value(problem) - 1e-9


@each_solver
def test_corrupted_answers_are_refused(name):
    problem = any_matching(5, 5, 3)
    good = solve(problem, name)
    p = good.permutation.clone()
    p[0] = p[p >= 0][-1] if p[0] != p[p >= 0][-1] else p[p >= 0][0]
    wrong = [
        replace(good, permutation=p),
        replace(good, permutation=torch.full_like(p, 5)),
        replace(good, permutation=good.permutation[:-1]),
        replace(good, permutation=None),
        replace(good, value=good.value - 1e-6),
        replace(good, value=good.value * torch.nan),
    ]
    if good.lower_bound is not None:
        wrong += [
            replace(good, lower_bound=good.value + 1e-3),
            replace(good, lower_bound=good.lower_bound + 1e-6),
            replace(good, potentials=(good.potentials[0][:-1], good.potentials[1])),
            replace(good, lower_bound=good.lower_bound - 1, status=Status.OPTIMAL, statuses=(Status.OPTIMAL,)),
        ]
    for bad in wrong:
        assert check(problem, bad) != []


def test_mpopt_is_reproducible_honours_its_limit_and_leaves_its_input_alone():
    problem = any_matching(12, 14, 5, 0.2)
    before = {k: v.clone() for k, v in problem._tensors().items()}
    first, second = (solve(problem, "mpopt", seed=3, max_iterations=80) for _ in range(2))
    assert torch.equal(first.permutation, second.permutation)
    assert first.lower_bound == second.lower_bound
    assert all(torch.equal(v, before[k]) for k, v in problem._tensors().items())
    hurried = solve(problem, "mpopt", time_limit=0.0)
    assert hurried.status is Status.TIME_LIMIT
    assert check(problem, hurried) == []
    bounds = [step.bound.item() for step in first.history]
    assert bounds == sorted(bounds)
    for setting in ({"max_iterations": 0}, {"attempts": 0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            make_solver("mpopt", **setting)


def test_a_problem_too_large_is_refused_before_any_memory_is_taken():
    A = np.zeros((200, 200))
    with pytest.raises(ValueError, match=r"796,000,000 numbers, 5.9 GiB.*local_search"):
        solve(QuadraticAssignmentProblem(A, A), "mpopt")


def test_the_bound_comes_near_that_of_linear_programming():
    from scipy.optimize import linprog

    problem = any_matching(6, 6, 2, 0.0)
    model = of_graph_matching(problem)
    n, labels, entries = 6, len(model.unary), len(model.table)
    rows, totals = [], []
    for i in range(n):
        row = np.zeros(labels + entries)
        row[model.first[i] : model.first[i + 1]] = 1
        rows.append(row)
        totals.append(1.0)
    for t, ends in enumerate(model.ends):
        cells = labels + np.arange(model.start[t], model.start[t + 1]).reshape(n + 1, n + 1)
        for side, node in enumerate(ends):
            for k in range(n + 1):
                row = np.zeros(labels + entries)
                row[cells[k] if side == 0 else cells[:, k]], row[model.first[node] + k] = 1, -1
                rows.append(row)
                totals.append(0.0)
    once = np.zeros((n, labels + entries))
    for k in np.flatnonzero(model.column < n):
        once[model.column[k], k] = 1
    conflict = model.table >= model.prohibitive
    costs = np.concatenate([model.unary, np.where(conflict, 0, model.table)])
    upper = np.concatenate([np.ones(labels), 1.0 - conflict])
    bounds = np.stack([np.zeros_like(upper), upper], 1)
    relaxed = linprog(costs, once, np.ones(n), np.array(rows), totals, bounds=bounds).fun + 0.25
    bound = solve(problem, "mpopt", max_iterations=2000, tolerance=1e-9).lower_bound.item()
    assert bound <= relaxed + 1e-9
    assert bound == pytest.approx(relaxed, rel=2e-3)


def test_files_are_read_as_they_were_written(tmp_path):
    for seed in range(5):
        problem = replace_constant(any_matching(4, 5, seed))
        write_dd(tmp_path / "a.dd", problem)
        (tmp_path / "a.dd.gz").write_bytes(gzip.compress((tmp_path / "a.dd").read_bytes()))
        for name in ("a.dd", "a.dd.gz"):
            again = read_dd(tmp_path / name)
            assert torch.equal(again.linear, problem.linear)
            p = torch.tensor(list(matchings(4, 5, False)))
            torch.testing.assert_close(again.objective(p), problem.objective(p))
    with pytest.raises(InvalidProblem, match="cannot say that all nodes are to be matched"):
        write_dd(tmp_path / "b.dd", any_matching(3, 3, 0, complete=True))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.dd", "a.dd.gz"]


def replace_constant(problem):
    return GraphMatchingProblem(problem.linear, problem.pairs, problem.pair_costs)


GOOD = "c a comment\np 2 2 3 1\na 0 0 0 -1\na 1 1 1 2.5\na 2 0 1 0\ni0 0 1 2\ne 0 1 -3\n"


def test_a_small_file_means_what_it_says(tmp_path):
    (tmp_path / "a.dd").write_text(GOOD)
    problem = read_dd(tmp_path / "a.dd")
    assert problem.linear.tolist() == [[-1, 0], [float("inf"), 2.5]]
    assert problem.objective(torch.tensor([[0, 1], [0, -1], [1, -1], [-1, -1]])).tolist() == [-1.5, -1, 0, 0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("p 2 2 3 1", "p 2 2 4 1", "promises 4 assignments and 1 edges"),
        ("p 2 2 3 1\n", "", "one header"),
        ("p 2 2 3 1", "p 2 2 3 1\np 2 2 3 1", "one header"),
        ("p 2 2 3 1", "gm 0 1\np 2 2 3 1", "one problem a file"),
        ("a 1 1 1 2.5", "a 1 2 1 2.5", "within 2 × 2"),
        ("a 1 1 1 2.5", "a 5 1 1 2.5", "the assignment 1"),
        ("a 1 1 1 2.5", "a 1 1 1 x", "integers, and for the cost a number"),
        ("a 1 1 1 2.5", "a 1 1 1 nan", "a finite cost"),
        ("a 1 1 1 2.5", "a 1 0 0 2.5", "each may be there once"),
        ("e 0 1 -3", "e 1 0 -3", "id1 < id2"),
        ("e 0 1 -3", "e 0 2 -3", "exclude each other"),
        ("e 0 1 -3", "e 0 1", "expected is"),
        ("e 0 1 -3", "\n", "expected is"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, old, new, words):
    (tmp_path / "a.dd").write_text(GOOD.replace(old, new))
    with pytest.raises(InvalidProblem, match=words) as refused:
        read_dd(tmp_path / "a.dd")
    assert "a.dd" in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[0.0, float("nan")]],), "NaN"),
        (([0.0, 1.0],), "one matrix"),
        ((np.zeros((0, 3)),), "not empty"),
        ((np.zeros((2, 2)), [[0, 0, 1, 1]], [1.0, 2.0]), "one cost each"),
        ((np.zeros((2, 2)), [[0, 0, 1, 1]], [np.inf]), "finite"),
        ((np.zeros((2, 2)), [[0, 0, 2, 1]], [1.0]), "not within 2 × 2"),
        ((np.zeros((2, 2)), [[0, 0, 0, 1]], [1.0]), "exclude each other"),
        ((np.zeros((2, 2)), [[0, 0, 1, 1], [1, 1, 0, 0]], [1.0, 2.0]), r"pairs\[1\].*there twice"),
        (([[0.0, np.inf], [0.0, 0.0]], [[0, 1, 1, 0]], [1.0]), "does not allow"),
        (([[0.0], [0.0]], None, None, 0.0, True), "cannot all be matched"),
    ],
)
def test_what_is_no_problem_is_refused(arguments, words):
    with pytest.raises(InvalidProblem, match=words):
        GraphMatchingProblem(*arguments)


@pytest.mark.parametrize(
    ("name", "best"),
    [("house10_0_7", -3.53831), ("hotel10_0_1", -5.8671), ("opengm1", -170.6371), ("libmpopt_qap_000", -94.17718)],
)
def test_the_fields_own_instances(name, best):
    path = SHARED / "qap" / "dd" / f"{name}.dd.gz"
    if not path.exists():
        pytest.skip("the instances are not at hand")
    solution = solve(read_dd(path), "mpopt", max_iterations=60)
    assert solution.value.item() == pytest.approx(best, rel=1e-6)
    assert solution.lower_bound.item() <= best
