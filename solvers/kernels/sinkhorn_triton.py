# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def"
"""Sinkhorn's iteration on the GPU: K stays on chip where it fits, and else is read once an iteration.

The scheme is that of the CPU kernel: T_ij = u_i K_ij v_j with K_ij = exp((f_i + g_j − C_ij)/ε); as soon as a scaling
leaves [1/LARGE, LARGE], or a sum underflows, the scalings are absorbed into the potentials f, g (Schmitzer, SIAM J.
Sci. Comput. 41(3), 2019) and the iteration is done in the log domain. K, u and v have the type of the cost, f and g are
float64, and the exponents lose nothing to cancellation: float32 stays accurate for small ε.

Two forms: ``_on_chip`` runs all iterations of one problem in one program, with K in registers. A larger problem is
iterated by ``_row_pass``, which reads K once (a block of rows is summed, scaled and added to the column sums while it
is in registers), and ``_column_pass``. No atomics: the order of every sum depends on the sizes n and m alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

try:
    import triton
    import triton.language as tl
except ImportError:  # unavailable_reason tells
    triton = None
else:  # the states of a large problem
    RUNNING, CONVERGED, AT_LIMIT, UNSAFE = (tl.constexpr(state) for state in range(4))

# The largest scaling, and the smallest sum that has not lost too many terms to underflow.
RANGE = {torch.float32: {"LARGE": 1e8, "TINY": 1e-20}, torch.float64: {"LARGE": 1e50, "TINY": 1e-200}}
ON_CHIP = 1 << 17  # bytes of K, padded to powers of two, that one program holds in registers
TILE = 1 << 15  # bytes of a block of rows, likewise; a single row may have twice as many
PROGRAMS = 264  # programs of a row pass at most: two on each multiprocessor of an H100 or H200
COLUMNS = 32  # columns of a block of the column pass
LOOK = 16  # iterations of a large problem between two looks of the host
STEP = 1000  # iterations of a small problem between two looks at the clock
BUILD = {"enable_fp_fusion": True}  # a product and a sum may be one instruction

Expired = Callable[[], bool] | None


def _jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``triton.jit``; without Triton the plain function, which is never called."""
    return (lambda function: function) if triton is None else triton.jit(**options)


@_jit()
def _log(x):
    """log x in float64, −∞ for zero."""
    return tl.where(x > 0, tl.log(tl.where(x > 0, x, 1).to(tl.float64)), float("-inf"))


@_jit()
def _exponent(C, f, g, reg):
    """(f + g − C)/ε; where C is float32, f and g as two float32 numbers each, their sum exact (Knuth's TwoSum)."""
    if C.dtype == tl.float64:
        return (f[:, None] + g[None, :] - C) * (1 / reg)
    f, g = tl.maximum(f, -1e36), tl.maximum(g, -1e36)  # finite: ∞ − ∞ would be NaN
    F, G = f.to(tl.float32), g.to(tl.float32)
    low = (f - F).to(tl.float32)[:, None] + (g - G).to(tl.float32)[None, :]
    F, G = F[:, None], G[None, :]
    S = F + G
    part = S - F
    return ((S - C) + (((F - (S - part)) + (G - part)) + low)) * (1 / reg).to(tl.float32)


@_jit()
def _row_potential(C, a, g, reg):
    """f = ε log a − ε log Σ_j exp((g_j − C_ij)/ε)."""
    top = tl.maximum(tl.max(g.to(C.dtype)[None, :] - C, 1), -1e32).to(tl.float64)  # finite, as in _exponent
    total = tl.sum(tl.exp(_exponent(C, -top, g, reg)), 1)
    return tl.where(a > 0, reg * (_log(a) - _log(total)) - top, float("-inf"))


@_jit()
def _column_potential(C, b, f, reg):
    """g = ε log b − ε log Σ_i exp((f_i − C_ij)/ε)."""
    top = tl.maximum(tl.max(f.to(C.dtype)[:, None] - C, 0), -1e32).to(tl.float64)
    total = tl.sum(tl.exp(_exponent(C, f, -top, reg)), 0)
    return tl.where(b > 0, reg * (_log(b) - _log(total)) - top, float("-inf"))


@_jit()
def _row_scaling(a, total, LARGE: tl.constexpr, TINY: tl.constexpr):
    """u = a / Σ K v; out of range it is NaN, which every column sum inherits."""
    u = a / total
    safe = (total > TINY) & (u > 1 / LARGE) & (u < LARGE)
    return tl.where(a > 0, tl.where(safe, u, float("nan")), 0)


@_jit()
def _column_scaling(b, total, LARGE: tl.constexpr, TINY: tl.constexpr):
    """v = b / Σ K u, and how many of them are out of range."""
    v = b / total
    safe = (total > TINY) & (v > 1 / LARGE) & (v < LARGE)
    return tl.where(b > 0, v, 0), tl.sum(tl.where((b > 0) & (safe == 0), 1, 0), 0)


@_jit(do_not_specialize=["n"])
def _on_chip(
    C, a, b, reg, limit, f, g, iterations, converged, plan, n, m, last,
    N: tl.constexpr, M: tl.constexpr, LARGE: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """One problem a program, until it converges or until its iteration ``last``; see ``sinkhorn_cuda``."""
    DTYPE: tl.constexpr = C.dtype.element_ty
    k = tl.program_id(0).to(tl.int64)
    iteration, last_k = tl.load(iterations + k), tl.load(last + k)
    if (tl.load(converged + k) != 0) | (iteration >= last_k):
        return
    i, j = tl.arange(0, N), tl.arange(0, M)
    inside = (i < n)[:, None] & (j < m)[None, :]
    at = k * n * m + i[:, None] * m + j[None, :]
    a_k = tl.load(a + k * n + i, mask=i < n, other=0)
    b_k = tl.load(b + k * m + j, mask=j < m, other=0)
    g_k = tl.load(g + k * m + j, mask=j < m, other=float("-inf"))
    eps, limit_k = tl.load(reg + k), tl.load(limit + k)
    u, v, f_k, K = (a_k > 0).to(DTYPE), (b_k > 0).to(DTYPE), tl.zeros([N], tl.float64), tl.zeros([N, M], DTYPE)
    running = iteration < last_k
    done = iteration < 0
    safe = done  # no: the first iteration is done in the log domain
    while running:
        iteration += 1
        if safe == 0:
            cost = tl.load(C + at, mask=inside, other=0)
            f_k = _row_potential(cost, a_k, g_k + eps * _log(v), eps)
            g_k = _column_potential(cost, b_k, f_k, eps)
            K = tl.exp(_exponent(cost, f_k, g_k, eps))
            u, v = (a_k > 0).to(DTYPE), (b_k > 0).to(DTYPE)
        total = tl.sum(K * v[None, :], 1)
        done = tl.sum(tl.abs(u * total - a_k), 0) <= limit_k
        running = (done == 0) & (iteration < last_k)
        next_u = _row_scaling(a_k, total, LARGE, TINY)
        next_v, unsafe = _column_scaling(b_k, tl.sum(K * next_u[:, None], 0), LARGE, TINY)
        safe = unsafe == 0
        accepted = running & safe
        u, v = tl.where(accepted, next_u, u), tl.where(accepted, next_v, v)
    tl.store(f + k * n + i, f_k + eps * _log(u), mask=i < n)
    tl.store(g + k * m + j, g_k + eps * _log(v), mask=j < m)
    tl.store(plan + at, u[:, None] * K * v[None, :], mask=inside)
    tl.store(iterations + k, iteration)
    tl.store(converged + k, done.to(tl.int8))


# Large problems. The state after iteration t has its scalings in half t mod 2 of u (2, B, n) and v (2, B, m). A row
# pass first decides whether the iteration before it is to stand: every program does so by itself, from the errors and
# flags of all, and counts for itself, so that none reads what another writes in the same launch. When it does not stand
# the programs leave everything as it is, however often they are called, until the host has looked.


@_jit(do_not_specialize=["n", "rows", "blocks"])
def _row_pass(
    K, a, u, v, partial, errors, unsafe, limit, iterations, status, n, m, last, rows, blocks,
    R: tl.constexpr, M: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, LARGE: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Accept the last iteration, then: error of the rows, next u, and partial column sums of ``rows`` rows a program.

    partial (B, programs, m), errors (2, B, programs), unsafe (B, blocks), iterations (B, programs), status (B,).
    """
    DTYPE: tl.constexpr = K.dtype.element_ty
    p, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    programs, batch = tl.num_programs(0), tl.num_programs(1)
    t, last_k = tl.load(iterations + k * programs + p), tl.load(last + k)
    old, new = t % 2, 1 - t % 2
    lane, block = tl.arange(0, P), tl.arange(0, Q)
    error = tl.sum(tl.load(errors + (old * batch + k) * programs + lane, mask=lane < programs, other=0), 0)
    faults = tl.sum(tl.load(unsafe + k * blocks + block, mask=block < blocks, other=0), 0)
    converged = error <= tl.load(limit + k)
    stands = (converged == 0) & (t < last_k) & (faults == 0)
    if p == 0:
        state = tl.where(t >= last_k, AT_LIMIT, tl.where(faults == 0, RUNNING, UNSAFE))
        tl.store(status + k, tl.where(converged, CONVERGED, state))
    if stands:
        j = tl.arange(0, M)
        v_k = tl.load(v + (new * batch + k) * m + j, mask=j < m, other=0)
        columns, misses = tl.zeros([M], DTYPE), tl.zeros([R], DTYPE)
        for start in range(p * rows, min((p + 1) * rows, n), R):
            i = start + tl.arange(0, R)
            inside = (i < n)[:, None] & (j < m)[None, :]
            tile = tl.load(K + (k * n + i)[:, None] * m + j[None, :], mask=inside, other=0)
            a_i = tl.load(a + k * n + i, mask=i < n, other=0)
            u_i = tl.load(u + (new * batch + k) * n + i, mask=i < n, other=0)
            total = tl.sum(tile * v_k[None, :], 1)
            misses += tl.abs(u_i * total - a_i)
            next_u = _row_scaling(a_i, total, LARGE, TINY)
            tl.store(u + (old * batch + k) * n + i, next_u, mask=i < n)
            columns += tl.sum(tile * next_u[:, None], 0)
        tl.store(partial + (k * programs + p) * m + j, columns, mask=j < m)
        tl.store(errors + (new * batch + k) * programs + p, tl.sum(misses, 0))
        tl.store(iterations + k * programs + p, t + 1)


@_jit(do_not_specialize=["programs"])
def _column_pass(
    partial, b, v, unsafe, iterations, m, programs,
    R: tl.constexpr, M: tl.constexpr, LARGE: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Next v of a block of M columns, from the partial sums; called again without a row pass it does the same again."""
    q, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    blocks, batch = tl.num_programs(0), tl.num_programs(1)
    old = (tl.load(iterations + k * programs) + 1) % 2
    i, j = tl.arange(0, R), q * M + tl.arange(0, M)
    total = tl.zeros([R, M], partial.dtype.element_ty)
    for start in range(0, programs, R):
        inside = (start + i < programs)[:, None] & (j < m)[None, :]
        total += tl.load(partial + (k * programs + start + i)[:, None] * m + j[None, :], mask=inside, other=0)
    b_k = tl.load(b + k * m + j, mask=j < m, other=0)
    next_v, faults = _column_scaling(b_k, tl.sum(total, 0), LARGE, TINY)
    tl.store(v + (old * batch + k) * m + j, next_v, mask=j < m)
    tl.store(unsafe + k * blocks + q, faults)


@_jit(do_not_specialize=["n", "programs"])
def _log_rows(C, a, reg, f, g, v, iterations, status, n, m, programs, R: tl.constexpr, M: tl.constexpr):
    """Where a scaling was out of range: the column scalings absorbed, and f of R rows in the log domain."""
    k = tl.program_id(1).to(tl.int64)
    if tl.load(status + k) == UNSAFE:
        half = (tl.load(iterations + k * programs) % 2) * tl.num_programs(1) + k
        i, j = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, M)
        inside = (i < n)[:, None] & (j < m)[None, :]
        g_k = tl.load(g + k * m + j, mask=j < m, other=float("-inf"))
        g_k += tl.load(reg + k) * _log(tl.load(v + half * m + j, mask=j < m, other=0))
        cost = tl.load(C + (k * n + i)[:, None] * m + j[None, :], mask=inside, other=0)
        a_k = tl.load(a + k * n + i, mask=i < n, other=0)
        tl.store(f + k * n + i, _row_potential(cost, a_k, g_k, tl.load(reg + k)), mask=i < n)


@_jit(do_not_specialize=["n", "programs"])
def _log_columns(C, b, reg, f, g, v, unsafe, iterations, status, n, m, programs, R: tl.constexpr, M: tl.constexpr):
    """Then g of M columns in the log domain, their scalings one again."""
    q, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(status + k) == UNSAFE:
        half = ((tl.load(iterations + k * programs) + 1) % 2) * tl.num_programs(1) + k
        j = q * M + tl.arange(0, M)
        eps = tl.load(reg + k)
        top = tl.full([M], -1e32, tl.float64)  # finite, and above what _exponent takes for −∞
        total = tl.zeros([M], C.dtype.element_ty)
        for start in range(0, n, R):
            i = start + tl.arange(0, R)
            inside = (i < n)[:, None] & (j < m)[None, :]
            cost = tl.load(C + (k * n + i)[:, None] * m + j[None, :], mask=inside, other=0)
            f_k = tl.load(f + k * n + i, mask=i < n, other=float("-inf"))
            higher = tl.maximum(top, tl.max(f_k.to(cost.dtype)[:, None] - cost, 0))
            terms = tl.sum(tl.exp(_exponent(cost, f_k, -higher, eps)), 0)
            total = total * tl.exp(((top - higher) * (1 / eps)).to(cost.dtype)) + terms
            top = higher
        b_k = tl.load(b + k * m + j, mask=j < m, other=0)
        g_k = tl.where(b_k > 0, eps * (_log(b_k) - _log(total)) - top, float("-inf"))
        tl.store(g + k * m + j, g_k, mask=j < m)
        tl.store(v + half * m + j, b_k > 0, mask=j < m)
        tl.store(unsafe + k * tl.num_programs(0) + q, 0)


@_jit(do_not_specialize=["n", "programs"])
def _fill(C, K, a, reg, f, g, u, iterations, status, n, m, programs, R: tl.constexpr, M: tl.constexpr):
    """Then R rows of K from the new potentials, their scalings one again."""
    k = tl.program_id(1).to(tl.int64)
    if tl.load(status + k) == UNSAFE:
        half = ((tl.load(iterations + k * programs) + 1) % 2) * tl.num_programs(1) + k
        i, j = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, M)
        inside = (i < n)[:, None] & (j < m)[None, :]
        at = (k * n + i)[:, None] * m + j[None, :]
        f_k = tl.load(f + k * n + i, mask=i < n, other=float("-inf"))
        g_k = tl.load(g + k * m + j, mask=j < m, other=float("-inf"))
        exponent = _exponent(tl.load(C + at, mask=inside, other=0), f_k, g_k, tl.load(reg + k))
        tl.store(K + at, tl.exp(exponent), mask=inside)
        tl.store(u + half * n + i, tl.load(a + k * n + i, mask=i < n, other=0) > 0, mask=i < n)


def unavailable_reason(C: Tensor | None = None) -> str | None:
    """Why these kernels cannot run on this machine, or not on costs C (B, n, m); None when they can."""
    if triton is None:
        return "Triton is not installed (PyTorch for CUDA brings it on Linux)"
    if isinstance(_on_chip, triton.JITFunction):  # and not Triton's interpreter, which takes any tensor
        if not torch.cuda.is_available():
            return "there is no CUDA device"
        device = torch.device("cuda") if C is None else C.device
        if device.type != "cuda":
            return f"the cost is on the device {device}, not on a CUDA device"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"Triton needs compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
    if C is not None and C.dtype not in RANGE:
        return f"the cost must be float32 or float64, not {C.dtype}"
    if C is None or _fits_on_chip(C):
        return None
    if len(C) > 65535:  # the largest second side of a grid
        return f"a batch may hold at most 65535 problems that do not fit on chip, and this one holds {len(C)}"
    if C.shape[-1] * C.itemsize > 2 * TILE:
        return f"a row may hold {2 * TILE // C.itemsize} costs in {C.dtype} at most, and this one holds {C.shape[-1]}"
    return None


def sinkhorn_cuda(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    limit: Tensor,
    max_iterations: Tensor,
    g0: Tensor | None = None,
    expired: Expired = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Iterate every problem of a batch until it converges, or ``max_iterations`` times, but at least once.

    Each stops by itself when the L1 error of its row marginal is at most its ``limit``, the columns being exact.

    Args:
        C: costs (B, n, m), float32 or float64, on a CUDA device; +∞ where no mass may go.
        a: weights (B, n), not negative, of positive sum.
        b: weights (B, m), likewise.
        reg: ε > 0 of each problem (B,), in units of the cost.
        limit: (B,).
        max_iterations: (B,); an iteration scales the rows, then the columns.
        g0: the column potentials (B, m) to start from, finite where b > 0; zero when left out.
        expired: asked now and then; once it says True the iteration ends where it is.

    Returns:
        f (B, n) and g (B, m), float64, −∞ where there is no weight; iterations (B,), int64; converged (B,), bool; and
        the plan (B, n, m), in the type of the cost.

    Raises:
        RuntimeError: the kernels cannot run here; the message says why.
    """
    if reason := unavailable_reason(C):
        raise RuntimeError(f"the Triton kernels of Sinkhorn cannot run: {reason}")
    m, b = C.shape[-1], b.to(C.dtype)
    g = torch.zeros_like(b, dtype=torch.float64) if g0 is None else g0.double()
    # Columns without weight align the rows, so that they are read by 16 bytes.
    C, b, g = (pad(x, (0, -m % 16)).contiguous() for x in (C, b, g))
    g = torch.where(b > 0, g, -torch.inf)
    a, reg, limit = a.to(C.dtype).contiguous(), reg.double().contiguous(), limit.double().contiguous()
    last = max_iterations.to(torch.int32).clamp(min=1).contiguous()
    run = _iterate_on_chip if _fits_on_chip(C) else _iterate_by_passes
    with torch.cuda.device_of(C):
        f, g, iterations, converged, T = run(C, a, b, reg, limit, last, g, expired)
    return f, g[:, :m].contiguous(), iterations, converged, T[..., :m].contiguous()


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _warps(size: int) -> int:
    """Warps for a block of ``size`` bytes: 32 registers of it a thread, 64 in the largest."""
    return max(1, min(16, size >> 12))


def _fits_on_chip(C: Tensor) -> bool:
    return _padded(C.shape[-2]) * _padded(C.shape[-1]) * C.itemsize <= ON_CHIP


def _iterate_on_chip(
    C: Tensor, a: Tensor, b: Tensor, reg: Tensor, limit: Tensor, last: Tensor, g: Tensor, expired: Expired
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, n, m = C.shape
    N, M = _padded(n), _padded(m)
    f, plan = g.new_empty(batch, n), torch.empty_like(C)
    iterations, converged = (C.new_zeros(batch, dtype=t) for t in (torch.int64, torch.int8))
    sizes = {"N": N, "M": M, "num_warps": _warps(N * M * C.itemsize), **RANGE[C.dtype], **BUILD}
    until = last if expired is None else last.clamp(max=STEP)
    while batch:
        _on_chip[(batch,)](C, a, b, reg, limit, f, g, iterations, converged, plan, n, m, until, **sizes)
        if expired is None or bool(((converged != 0) | (iterations >= last)).all()) or expired():
            break
        until = torch.minimum(last, until + STEP)
    return f, g, iterations, converged.bool(), plan


def _iterate_by_passes(
    C: Tensor, a: Tensor, b: Tensor, reg: Tensor, limit: Tensor, last: Tensor, g: Tensor, expired: Expired
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, n, m = C.shape
    M = _padded(m)
    R = min(max(1, TILE // (M * C.itemsize)), 1 << max(3, (n // PROGRAMS).bit_length() - 1))  # rows a block
    rows = R * -(-n // (R * PROGRAMS))  # rows a program
    programs, blocks = -(-n // rows), -(-m // COLUMNS)
    K, partial = torch.empty_like(C), C.new_empty(batch, programs, m)
    u, v, f = C.new_ones(2, batch, n), C.new_ones(2, batch, m), g.new_empty(batch, n)
    errors = C.new_full((2, batch, programs), torch.inf)
    unsafe, iterations = (C.new_zeros((batch, k), dtype=torch.int32) for k in (blocks, programs))
    status = C.new_full((batch,), UNSAFE.value, dtype=torch.int32)  # K is to be filled
    tile = {"R": R, "M": M, "num_warps": _warps(R * M * C.itemsize), **BUILD}
    narrow = {"R": 64, "M": COLUMNS, "num_warps": 4, **BUILD}
    passed = {"P": _padded(programs), "Q": _padded(blocks), **RANGE[C.dtype]}
    strips, bands = (-(-n // R), batch), (blocks, batch)
    states = [UNSAFE.value] * batch
    while any(state in (RUNNING.value, UNSAFE.value) for state in states):
        if UNSAFE.value in states:
            which = (iterations, status, n, m, programs)
            _log_rows[strips](C, a, reg, f, g, v, *which, **tile)
            _log_columns[bands](C, b, reg, f, g, v, unsafe, *which, **narrow)
            _fill[strips](C, K, a, reg, f, g, u, *which, **tile)
        for _ in range(LOOK):
            passing = (K, a, u, v, partial, errors, unsafe, limit, iterations, status, n, m, last, rows, blocks)
            _row_pass[(programs, batch)](*passing, **tile, **passed)
            _column_pass[bands](partial, b, v, unsafe, iterations, m, programs, **narrow, **RANGE[C.dtype])
        states = status.tolist()
        if expired is not None and expired():
            break
    t = iterations[:, 0].long()
    u, v = (x[t % 2, torch.arange(batch, device=C.device)] for x in (u, v))
    f += reg.unsqueeze(-1) * u.double().log()
    g += reg.unsqueeze(-1) * v.double().log()
    return f, g, t, status == CONVERGED.value, K.mul_(u.unsqueeze(-1)).mul_(v.unsqueeze(-2))
