"""Vectors of compiled loops against NumPy."""

import numpy as np
import pytest
from numba import njit

from solvers.kernels import vectors
from solvers.kernels.intrinsics import at
from solvers.kernels.vectors import BYTES

DTYPES = [np.float32, np.float64]
rng = np.random.default_rng(0)


def numbers(dtype, rows=3):
    """Rows of one vector's length."""
    return rng.standard_normal((rows, BYTES // np.dtype(dtype).itemsize)).astype(dtype)


@njit
def lane_by_lane(x, out):
    lanes = x.shape[1]
    a, b, c = vectors.load(x, 0), vectors.load(x, lanes), vectors.load(x, 2 * lanes)
    results = (
        a + b, a - b, a * b, a / b, vectors.multiply_add(a, b, c), vectors.least(a, b), vectors.greatest(a, b),
        vectors.absolute(a), vectors.where_positive(a, b, c), vectors.spread(x, lanes + 1), vectors.constant(x[0, 2]),
    )  # fmt: skip
    for k in range(len(results)):
        vectors.store(out, k * lanes, results[k])


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_are_those_of_each_lane(dtype):
    x = numbers(dtype)
    out = np.zeros((11, x.shape[1]), dtype)
    lane_by_lane(x, out)
    a, b, c = x
    everywhere = np.ones_like(a)
    wanted = [a + b, a - b, a * b, a / b, a * b + c, np.minimum(a, b), np.maximum(a, b), abs(a), np.where(a > 0, b, c)]
    np.testing.assert_allclose(out, [*wanted, b[1] * everywhere, a[2] * everywhere], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[[0, 5, 6, 7, 8]], np.stack([wanted[k] for k in (0, 5, 6, 7, 8)]))


@njit
def folded(x):
    v = vectors.load(x, 0)
    return vectors.total(v), vectors.lowest(v), vectors.highest(v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions(dtype):
    x = numbers(dtype, 1)
    np.testing.assert_allclose(folded(x), [x.sum(), x.min(), x.max()], rtol=1e-5)


@njit
def where_equal(x, y):
    return vectors.first_equal(vectors.load(x, 0), vectors.load(y, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_lane_that_is_equal(dtype):
    x, y = numbers(dtype, 2)
    lanes = len(x)
    assert where_equal(x, y) == lanes
    y[lanes - 1] = x[lanes - 1]
    assert where_equal(x, y) == lanes - 1
    y[1] = x[1]
    assert where_equal(x, y) == 1
    y[:] = x[:] = np.nan
    assert where_equal(x, y) == lanes


@njit
def through_doubles(x, out):
    pointer = at(out, 0)
    vectors.store_doubles(pointer, 1, vectors.load_doubles(x, 2) + vectors.constant(1.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_doubles_of_any_dtype_from_any_place(dtype):
    x, out, lanes = rng.standard_normal(64).astype(dtype), np.zeros(64, dtype), BYTES // 8
    through_doubles(x, out)
    np.testing.assert_array_equal(out[1 : 1 + lanes], (x[2 : 2 + lanes].astype(np.float64) + 1).astype(dtype))
    assert not out[1 + lanes :].any()
    assert out[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_zeros_begin_with_a_cache_line(dtype, count):
    x = vectors.aligned_zeros(count, dtype)
    assert x.ctypes.data % vectors.ALIGNMENT == 0
    assert (x.shape, x.dtype, x.any()) == ((count,), dtype, False)
