"""Subset selection beside trying all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import InvalidProblem, Status
from solvers.subset_selection import select_subsets


def all_values(cost, size):
    """Of every subset, in increasing order."""
    return sorted(cost[np.ix_(x, x)].sum() for x in itertools.combinations(range(len(cost)), size))


def any_cost(n, seed, kind):
    rng = np.random.default_rng(seed)
    if kind == "integers":
        return rng.integers(-3, 4, (n, n)).astype(float)
    return {"reals": rng.standard_normal((n, n)), "flat": np.ones((n, n))}[kind]


def assert_sound(cost, size, count, found):
    assert found.members.shape == (min(count, math.comb(len(cost), size)), size)
    assert len({tuple(x) for x in found.members.tolist()}) == len(found.members)
    assert (np.diff(found.members, axis=1) > 0).all()
    for members, value in zip(found.members, found.values, strict=True):
        assert value == pytest.approx(cost[np.ix_(members, members)].sum(), abs=1e-9)
    assert (np.diff(found.values) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 11).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.integers(1, 15),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["reals", "integers", "flat"]),
)
def test_the_search_finds_the_best_of_small_problems(sizes, count, seed, kind):
    n, size = sizes
    cost = any_cost(n, seed, kind)
    found = select_subsets(cost, size, count)
    assert_sound(cost, size, count, found)
    expected = all_values(cost, size)[:count]
    assert found.values[0] == pytest.approx(expected[0], abs=1e-9)
    if kind == "reals":
        np.testing.assert_allclose(found.values, expected, atol=1e-9)


@pytest.mark.parametrize("method", ["gurobi", "highs"])
@pytest.mark.parametrize(("n", "size", "count"), [(9, 3, 10), (8, 8, 3), (7, 1, 4), (6, 5, 10), (10, 4, 1)])
def test_the_exact_methods_prove_the_best(method, n, size, count):
    if method == "gurobi":
        pytest.importorskip("gurobipy")
    cost = any_cost(n, n, "reals")
    found = select_subsets(cost, size, count, method)
    assert_sound(cost, size, count, found)
    assert found.status is Status.OPTIMAL
    np.testing.assert_allclose(found.values, all_values(cost, size)[:count], atol=1e-9)


def test_the_search_is_reproducible_keeps_its_input_and_honours_the_limit():
    cost = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = cost.clone()
    first, second = (select_subsets(cost, 20, seed=4, moves=200) for _ in range(2))
    assert np.array_equal(first.members, second.members)
    assert torch.equal(cost, before)
    for method in ("local_search", "highs", "gurobi"):
        hurried = select_subsets(cost, 20, method=method, time_limit=0.0, moves=10**6)
        assert_sound(cost.numpy(), 20, 10, hurried)
        assert hurried.status is Status.TIME_LIMIT
    assert select_subsets(cost.float(), 20, seed=4, moves=200).members[0].tolist() == first.members[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.ones((2, 3)), 1), InvalidProblem, "square"),
        ((np.ones((1, 2, 2)), 1), InvalidProblem, "square"),
        (([[np.nan]], 1), InvalidProblem, "NaN"),
        ((np.ones((2, 2)), 3), ValueError, r"size must be an integer, 1 … 2, not 3"),
        ((np.ones((2, 2)), 0), ValueError, "size"),
        ((np.ones((2, 2)), 1.5), ValueError, "size"),
        ((np.ones((2, 2)), 1, 0), ValueError, "count"),
        ((np.ones((2, 2)), 1, 1, "magic"), ValueError, "'local_search', 'gurobi', 'highs'"),
        ((np.ones((2, 2)), 1, 1, "highs", -1.0), ValueError, "time_limit"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        select_subsets(*arguments)
