"""exp for compiled loops, written so that LLVM vectorises it.

NumPy's exp inside a compiled loop is a call for each number unless Intel's vector library is installed. Here it is
2ⁿ p(r) with n = round(x / log 2), r = x − n log 2 and p the Taylor polynomial on |r| ≤ log 2 / 2 (Cody and Waite,
Software Manual for the Elementary Functions, 1980, ch. 6): no branch, no call. Within 2 units in the last place;
what would be subnormal is 0, and 0, ∞ and NaN come out as they should.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import float32, float64, int32, int64, njit, types
from numba.extending import intrinsic


def _reinterpreted(source: types.Type, target: types.Type, llvm: ir.Type) -> Any:
    """A compiled function that reads the bits of a ``source`` number as a ``target`` number."""

    @intrinsic
    def bits(typingctx: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm)

        return target(source), generate

    return bits


_float32_of = _reinterpreted(types.int32, types.float32, ir.FloatType())
_int32_of = _reinterpreted(types.float32, types.int32, ir.IntType(32))
_float64_of = _reinterpreted(types.int64, types.float64, ir.DoubleType())
_int64_of = _reinterpreted(types.float64, types.int64, ir.IntType(64))

# log 2 in two parts, the first with few enough bits that n times it is exact.
HIGH32, LOW32 = float32(0.693359375), float32(-2.12194440e-4)
HIGH64, LOW64 = float64(6.93147180369123816490e-1), float64(1.90821492927058770002e-10)
# Adding 1.5 · 2^(mantissa bits) rounds to an integer, which then stands in the lowest bits.
ROUND32, ROUND64 = float32(12582912.0), float64(6755399441055744.0)
BITS32, BITS64 = int32(0x4B400000), int64(0x4338000000000000)  # of ROUND32 and ROUND64
LOG2E32, LOG2E64 = float32(1 / math.log(2)), float64(1 / math.log(2))
LOWEST32, LOWEST64 = float32(-87.33654), float64(-708.3964185322641)  # log of the smallest normal number
HIGHEST32, HIGHEST64 = float32(88.8), float64(709.8)  # their exp is ∞


@njit(float32(float32), cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def exp32(x: float) -> float:  # pragma: no cover - compiled
    """exp(x) of a float32."""
    y = min(max(x, LOWEST32), HIGHEST32)
    shifted = y * LOG2E32 + ROUND32
    n = shifted - ROUND32
    r = (y - n * HIGH32) - n * LOW32
    p = float32(1 / 5040)
    p = p * r + float32(1 / 720)
    p = p * r + float32(1 / 120)
    p = p * r + float32(1 / 24)
    p = p * r + float32(1 / 6)
    p = p * r + float32(1 / 2)
    p = p * r + float32(1)
    p = p * r + float32(1)
    # 2ⁿ in two factors: n may be one above the largest exponent.
    whole = _int32_of(shifted) - BITS32
    half = whole >> int32(1)
    result = p * _float32_of((half + int32(127)) << int32(23)) * _float32_of((whole - half + int32(127)) << int32(23))
    result = float32(0) if x < LOWEST32 else result
    return x if x != x else result


@njit(float64(float64), cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def exp64(x: float) -> float:  # pragma: no cover - compiled
    """exp(x) of a float64."""
    y = min(max(x, LOWEST64), HIGHEST64)
    shifted = y * LOG2E64 + ROUND64
    n = shifted - ROUND64
    r = (y - n * HIGH64) - n * LOW64
    p = 1 / 6227020800
    p = p * r + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r + 1.0
    p = p * r + 1.0
    whole = _int64_of(shifted) - BITS64
    half = whole >> 1
    result = p * _float64_of((half + 1023) << 52) * _float64_of((whole - half + 1023) << 52)
    result = 0.0 if x < LOWEST64 else result
    return x if x != x else result
