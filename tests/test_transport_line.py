"""Transport on the line: the closed form against the simplex, its plan, potentials and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import InvalidProblem, TransportProblem, solve
from solvers.transport_line import emd_1d


def weighted(rng, *shape, zeros=True):
    w = rng.random(shape) + 0.01
    if zeros and shape[-1] > 1:
        w[..., rng.integers(shape[-1])] = 0
    return w / w.sum(-1, keepdims=True)


def cost(x, y, p):
    return np.abs(np.asarray(x)[..., :, None] - np.asarray(y)[..., None, :]) ** p


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
    st.sampled_from((1.0, 1.5, 2.0, 3.0)),
    st.booleans(),
    st.sampled_from((1.0, 7.0)),
)
def test_it_is_the_optimum_of_the_matrix_problem(n, m, seed, p, repeated, mass):
    rng = np.random.default_rng(seed)
    x, y = ((rng.integers(0, 5, k).astype(float) if repeated else rng.standard_normal(k)) for k in (n, m))
    a, b = mass * weighted(rng, n), mass * weighted(rng, m)
    found, C = emd_1d(x, y, a, b, p), cost(x, y, p)
    exact = solve(TransportProblem(C, a, b), "emd").value.item()
    size = mass * (C.max() + 1e-12)
    assert found.value.item() == pytest.approx(exact, abs=1e-11 * size)
    T = np.zeros((n, m))
    np.add.at(T, (found.source.numpy(), found.target.numpy()), found.mass.numpy())
    np.testing.assert_allclose(T.sum(1), a, rtol=0, atol=1e-12 * mass)
    np.testing.assert_allclose(T.sum(0), b, rtol=0, atol=1e-12 * mass)
    assert (T >= 0).all()
    assert (T * C).sum() == pytest.approx(exact, abs=1e-11 * size)
    f, g = found.f.numpy(), found.g.numpy()
    assert (C - f[:, None] - g).min() >= -1e-11 * (C.max() + 1e-12)
    assert a @ f + b @ g == pytest.approx(exact, abs=1e-11 * size)


def test_a_batch_is_a_loop():
    rng = np.random.default_rng(1)
    x, y, a, b = rng.random((2, 3, 9)), rng.random((2, 3, 6)), weighted(rng, 2, 3, 9), weighted(rng, 6)
    together = emd_1d(x, y, a, b, 2)
    assert together.value.shape == (2, 3)
    assert together.mass.shape == (2, 3, 14)
    for k in np.ndindex(2, 3):
        alone = emd_1d(x[k], y[k], a[k], b, 2)
        assert all(torch.equal(whole[k], piece) for whole, piece in zip(together, alone, strict=True))


@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_gradients_are_those_of_finite_differences(p):
    rng = np.random.default_rng(3)
    x, y = (torch.tensor(rng.random((2, k)), requires_grad=True) for k in (5, 4))
    u, v = (torch.tensor(rng.standard_normal((2, k)), requires_grad=True) for k in (5, 4))

    def value(x, y, u, v):
        return emd_1d(x, y, u.softmax(-1), v.softmax(-1), p).value

    assert torch.autograd.gradcheck(value, (x, y, u, v), eps=1e-6, atol=1e-6)


def test_equal_points_have_no_pull():
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    emd_1d(x, torch.zeros(4, dtype=torch.float64), p=1.5).value.backward()
    assert torch.equal(x.grad, torch.zeros(3, dtype=torch.float64))


def test_float32_stays_float32_and_nothing_is_written_to():
    x = np.random.default_rng(4).random(50).astype(np.float32)
    before = x.copy()
    found = emd_1d(x, x + np.float32(1))
    np.testing.assert_array_equal(x, before)
    assert found.mass.dtype == found.f.dtype == torch.float32
    assert found.value.dtype == torch.float64
    assert found.value.item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(3), np.zeros((2, 3))), "all their dimensions but the last must agree"),
        ((np.zeros(0), np.zeros(3)), r"x has shape \(0,\)"),
        ((0.5, np.zeros(3)), r"x has shape \(\)"),
        (([1.0, np.nan], np.zeros(3)), "x holds 1 NaN"),
        ((np.zeros(3), np.zeros(2), [1, -1, 1]), "a has a negative weight"),
        ((np.zeros(2), np.zeros(2), [1, 1], [1, 2]), "do not sum to the same total"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(InvalidProblem, match=words):
        emd_1d(*arguments)


@pytest.mark.parametrize("p", [0.5, float("nan"), float("inf")])
def test_a_cost_that_is_not_convex_is_refused(p):
    with pytest.raises(ValueError, match="p must be a finite number ≥ 1"):
        emd_1d([0.0], [1.0], p=p)
