"""What numba lacks for the innermost loops: pointers that are not reference counted, and a minimum that vectorises."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


@intrinsic
def at(typing_context: Any, array: Any, index: Any) -> Any:
    """Pointer to element ``index`` of a C-contiguous array, flattened; it does not keep the array alive.

    Numba indexes it like an array, but counts no references in calls and does not look for negative indices.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), emit


@intrinsic
def smaller(typing_context: Any, a: Any, b: Any) -> Any:
    """Minimum of two numbers of one floating-point type, neither NaN.

    Numba's fastmath flags the comparison but not the choice, without which LLVM does not vectorise the reduction.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered("<", *arguments, flags=flags), *arguments, flags=flags)

    return a(a, b), emit
