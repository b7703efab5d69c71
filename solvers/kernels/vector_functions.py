"""exp and log of float32 vectors (see ``vectors``), for sums of exponentials that stay in registers.

Cody and Waite's reductions as in ``exponential``; the polynomial of log is Moshier's (Cephes, logf). Within 3 units in
the last place where they are used: exp below 0, log of normal positive numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from solvers.kernels.compiling import inlined
from solvers.kernels.exponential import HIGH32, LOG2E32, LOW32, LOWEST32, ROUND32
from solvers.kernels.vectors import constant, greatest, multiply_add, where_positive

SQRT_HALF = np.float32(0.70710678)


def _integers(vector: Any) -> ir.VectorType:
    return ir.VectorType(ir.IntType(32), vector.size)


def _every(vector: Any, number: int) -> ir.Constant:
    return ir.Constant(_integers(vector), [number] * vector.size)


@intrinsic
def _two_to_the(typing_context: Any, shifted: Any) -> Any:
    """2ⁿ of the integers n that stand in the lowest bits of n + ROUND32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _integers(shifted))
        power = builder.shl(builder.add(bits, _every(shifted, 127 - 0x4B400000)), _every(shifted, 23))
        return builder.bitcast(power, arguments[0].type)

    return shifted(shifted), emit


@intrinsic
def _mantissa(typing_context: Any, x: Any) -> Any:
    """m in [0.5, 1) with x = m 2ᵉ."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.and_(builder.bitcast(arguments[0], _integers(x)), _every(x, 0x007FFFFF))
        return builder.bitcast(builder.or_(bits, _every(x, 0x3F000000)), arguments[0].type)

    return x(x), emit


@intrinsic
def _exponent(typing_context: Any, x: Any) -> Any:
    """That e."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.lshr(builder.bitcast(arguments[0], _integers(x)), _every(x, 23))
        return builder.sitofp(builder.sub(bits, _every(x, 126)), arguments[0].type)

    return x(x), emit


@inlined
def exp_below_zero(x: Any) -> Any:  # pragma: no cover - compiled
    """exp(x) of a float32 vector, x ≤ 0 or so: no overflow is looked for; below the normal numbers it is 0."""
    low = constant(LOWEST32)
    y = greatest(x, low)
    shifted = multiply_add(y, constant(LOG2E32), constant(ROUND32))
    n = shifted - constant(ROUND32)
    r = multiply_add(n, constant(-LOW32), multiply_add(n, constant(-HIGH32), y))
    p = constant(np.float32(1 / 5040))
    p = multiply_add(p, r, constant(np.float32(1 / 720)))
    p = multiply_add(p, r, constant(np.float32(1 / 120)))
    p = multiply_add(p, r, constant(np.float32(1 / 24)))
    p = multiply_add(p, r, constant(np.float32(1 / 6)))
    p = multiply_add(p, r, constant(np.float32(1 / 2)))
    p = multiply_add(p, r, constant(np.float32(1)))
    p = multiply_add(p, r, constant(np.float32(1)))
    return where_positive(x - low, p * _two_to_the(shifted), constant(np.float32(0)))


@inlined
def log_of_positive(x: Any) -> Any:  # pragma: no cover - compiled
    """log(x) of a float32 vector of normal positive numbers."""
    one = constant(np.float32(1))
    m, e = _mantissa(x), _exponent(x)
    small = constant(SQRT_HALF) - m  # positive where m is doubled
    e = where_positive(small, e - one, e)
    m = where_positive(small, m + m, m) - one
    z = m * m
    p = constant(np.float32(7.0376836292e-2))
    p = multiply_add(p, m, constant(np.float32(-1.1514610310e-1)))
    p = multiply_add(p, m, constant(np.float32(1.1676998740e-1)))
    p = multiply_add(p, m, constant(np.float32(-1.2420140846e-1)))
    p = multiply_add(p, m, constant(np.float32(1.4249322787e-1)))
    p = multiply_add(p, m, constant(np.float32(-1.6668057665e-1)))
    p = multiply_add(p, m, constant(np.float32(2.0000714765e-1)))
    p = multiply_add(p, m, constant(np.float32(-2.4999993993e-1)))
    p = multiply_add(p, m, constant(np.float32(3.3333331174e-1)))
    p = p * m * z
    p = multiply_add(e, constant(LOW32), p)
    p = multiply_add(z, constant(np.float32(-0.5)), p)
    return multiply_add(e, constant(HIGH32), m + p)
