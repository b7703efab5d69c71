"""Short vectors of numbers as a type of compiled loops, for sums that LLVM does not vectorise well by itself.

A ``Vector`` fills one register: as many lanes as the array it was loaded from has numbers in ``BYTES``. The compiler
cuts it up where registers are narrower than that. Loads and stores take a C-contiguous array, flattened, or a pointer,
and the index of their first number; they count no references and check no bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from solvers.kernels.compiling import compiled

BYTES = 64 if get_host_cpu_features().get("avx512f") else 32
LANES = BYTES // 8  # numbers of eight bytes in a vector
ALIGNMENT = 64  # bytes of a cache line, across which a load is slow


class Vector(types.Type):
    """``size`` numbers of type ``dtype``."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype, self.size = dtype, 8 * BYTES // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.size})")

    @property
    def suffix(self) -> str:
        """The type in the names of LLVM's intrinsics."""
        return f"v{self.size}f{self.dtype.bitwidth}"


def _llvm(vector: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if vector.dtype == types.float32 else ir.DoubleType(), vector.size)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _llvm(vector))


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    pointer = isinstance(array_type, types.CPointer)
    return builder.gep(array if pointer else context.make_array(array_type)(context, builder, array).data, [index])


def _everywhere(builder: Any, number: Any, llvm: ir.VectorType) -> Any:
    nothing, index = ir.Constant(llvm, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(nothing, number, ir.Constant(index, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(index, llvm.count), [0] * llvm.count))


@intrinsic
def load(typing_context: Any, array: Any, k: Any) -> Any:
    """The numbers from index k on."""
    vector = Vector(array.dtype)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = _element(context, builder, signature.args[0], *arguments)
        value = builder.load(builder.bitcast(first, _llvm(vector).as_pointer()))
        value.align = array.dtype.bitwidth // 8
        return value

    return vector(array, types.intp), emit


@intrinsic
def store(typing_context: Any, array: Any, k: Any, x: Any) -> Any:
    """Write x to the numbers from index k on."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = _element(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(first, _llvm(x).as_pointer())).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, x), emit


@intrinsic
def load_doubles(typing_context: Any, array: Any, k: Any) -> Any:
    """As many numbers from index k on as there are doubles in a vector, in float64 whatever the array's dtype."""
    vector = Vector(types.float64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = _element(context, builder, signature.args[0], *arguments)
        stored = ir.VectorType(first.type.pointee, vector.size)
        value = builder.load(builder.bitcast(first, stored.as_pointer()))
        value.align = array.dtype.bitwidth // 8
        return value if array.dtype == types.float64 else builder.fpext(value, _llvm(vector))

    return vector(array, types.intp), emit


@intrinsic
def store_doubles(typing_context: Any, array: Any, k: Any, x: Any) -> Any:
    """Write x, of float64, to the numbers from index k on, rounded to the array's dtype."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = _element(context, builder, signature.args[0], *arguments[:2])
        stored = ir.VectorType(first.type.pointee, x.size)
        value = arguments[2] if array.dtype == types.float64 else builder.fptrunc(arguments[2], stored)
        builder.store(value, builder.bitcast(first, stored.as_pointer())).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, x), emit


@intrinsic
def spread(typing_context: Any, array: Any, k: Any) -> Any:
    """The number at index k in every lane."""
    vector = Vector(array.dtype)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = builder.load(_element(context, builder, signature.args[0], *arguments))
        return _everywhere(builder, number, _llvm(vector))

    return vector(array, types.intp), emit


@intrinsic
def constant(typing_context: Any, x: Any) -> Any:
    """The number x in every lane."""
    vector = Vector(x)
    return vector(x), lambda context, builder, signature, arguments: _everywhere(builder, arguments[0], _llvm(vector))


@intrinsic
def multiply_add(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once where the machine can."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_llvm(x), [_llvm(x)] * 3)
        name = f"llvm.fmuladd.{x.suffix}"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)

    return x(x, x, x), emit


@intrinsic
def where_positive(typing_context: Any, c: Any, x: Any, y: Any) -> Any:
    """x where c > 0, else y."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_llvm(c), [0.0] * c.size)
        return builder.select(builder.fcmp_ordered(">", arguments[0], zero), *arguments[1:])

    return x(c, x, x), emit


def _chosen(sign: str) -> Any:
    @intrinsic
    def choose(typing_context: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.select(builder.fcmp_ordered(sign, *arguments), *arguments)

        return x(x, x), emit

    return choose


least, greatest = _chosen("<"), _chosen(">")  # lane by lane; of a NaN in x and a number in y, the number
_OPERATORS: dict[Callable[..., Any], str] = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}


def _overloaded(symbol: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def compute(typing_context: Any, x: Any, y: Any) -> Any:
        return x(x, x), lambda context, builder, signature, arguments: getattr(builder, instruction)(*arguments)

    @overload(symbol)
    def between_vectors(x, y):  # type: ignore[no-untyped-def]  # numba compares its signature to the lambda's
        return (lambda x, y: compute(x, y)) if isinstance(x, Vector) and x == y else None


for _symbol, _instruction in _OPERATORS.items():
    _overloaded(_symbol, _instruction)


@intrinsic
def absolute(typing_context: Any, x: Any) -> Any:
    """|x|, lane by lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_llvm(x), [_llvm(x)])
        name = f"llvm.fabs.{x.suffix}"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)

    return x(x), emit


def _folded(fold: Callable[[Any, Any, Any], Any]) -> Any:
    """A reduction of the lanes, halves first."""

    @intrinsic
    def reduce(typing_context: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (value,), size, index = arguments, x.size, ir.IntType(32)
            while size > 1:
                size //= 2
                halves = (
                    builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(index, size), list(lanes)))
                    for lanes in (range(size), range(size, 2 * size))
                )
                value = fold(builder, *halves)
            return builder.extract_element(value, ir.Constant(index, 0))

        return x.dtype(x), emit

    return reduce


total = _folded(lambda builder, x, y: builder.fadd(x, y))
lowest = _folded(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y))
highest = _folded(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))


@intrinsic
def first_equal(typing_context: Any, x: Any, y: Any) -> Any:
    """The first lane in which x and y are equal, or the number of lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, wide = ir.IntType(x.size), ir.IntType(64)
        mask = builder.zext(builder.bitcast(builder.fcmp_ordered("==", *arguments), bits), wide)
        return builder.cttz(builder.or_(mask, ir.Constant(wide, 1 << x.size)), ir.Constant(ir.IntType(1), 1))

    return types.int64(x, x), emit


@compiled
def padded(size: int, lanes: int) -> int:  # pragma: no cover - compiled
    """The multiple of ``lanes`` from ``size`` on."""
    return (size + lanes - 1) // lanes * lanes


@compiled
def aligned_zeros(count: int, dtype: Any) -> Any:  # pragma: no cover - compiled
    """``count`` zeros that begin where a cache line does."""
    x = np.zeros(count + ALIGNMENT // 4, dtype)
    begin = -x.ctypes.data % ALIGNMENT // x.itemsize
    return x[begin : begin + count]
