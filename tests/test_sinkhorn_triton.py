"""The Triton kernels of Sinkhorn: run by Triton's interpreter on the CPU, and built for an H200 without one."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from solvers.kernels import sinkhorn_triton

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
FORMS = {"on chip": {}, "by passes": {"ON_CHIP": 0, "LOOK": 2, "PROGRAMS": 2}}
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}


def make(n, m, dtype=torch.float64, batch=2, seed=0):
    """Random costs in [0, 1] and unequal weights, with one node without mass on each side."""
    g = torch.Generator().manual_seed(seed)
    C = torch.rand(batch, n, m, generator=g, dtype=torch.float64).to(dtype)
    a, b = (torch.rand(batch, k, generator=g, dtype=torch.float64) + 0.1 for k in (n, m))
    a[:, 0] = 0 if n > 1 else 1
    b[:, -1] = 0 if m > 1 else 1
    a, b = ((w / w.sum(-1, keepdim=True)).to(dtype) for w in (a, b))
    return C, a, b


def reference(C, a, b, reg, limit, most):
    """The same in the log domain, in float64, problem by problem."""
    answers = []
    reg, most = (torch.as_tensor(x, dtype=torch.float64).expand(len(C)) for x in (reg, most))
    for C_, a_, b_, eps, limit_, last in zip(C.double(), a.double(), b.double(), reg, limit, most, strict=True):
        M, g, iteration, converged = -C_ / eps, torch.where(b_ > 0, 0.0, -torch.inf), 0, False
        while not converged and iteration < last:
            f = torch.where(a_ > 0, a_.log() - torch.logsumexp(M + g, 1), -torch.inf)
            g = torch.where(b_ > 0, b_.log() - torch.logsumexp(M + f[:, None], 0), -torch.inf)
            T = torch.exp(f[:, None] + g + M)
            iteration, converged = iteration + 1, bool((T.sum(1) - a_).abs().sum() <= limit_)
        answers.append((eps * f, eps * g, torch.tensor(iteration), torch.tensor(converged), T))
    return [torch.stack(part) for part in zip(*answers, strict=True)]


def run(problem, reg, limit, most, constants, g0=None, patience=None):
    """``sinkhorn_cuda`` with some constants of its module replaced; it is told to stop at its look number ``patience``.

    ``reg`` and ``most`` may be one number for all problems. Tensors travel between processes as NumPy arrays.
    """
    torch.set_num_threads(1)
    looks = []

    def expired():
        looks.append(None)
        return len(looks) == patience

    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(sinkhorn_triton, name, value)
        C, a, b = map(torch.from_numpy, problem)
        reg, most = (torch.as_tensor(x, dtype=torch.float64).expand(len(C)) for x in (reg, most))
        limit = torch.tensor(limit, dtype=torch.float64)
        g0 = None if g0 is None else torch.from_numpy(g0)
        answer = sinkhorn_triton.sinkhorn_cuda(C, a, b, reg, limit, most, g0, None if patience is None else expired)
    return [x.numpy() for x in answer]


def reason(shape, dtype):
    return sinkhorn_triton.unavailable_reason(torch.empty(shape, dtype=dtype, device="meta"))


@pytest.fixture(scope="module")
def interpreter():
    """A process in which Triton interprets: it decides so when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}.items():
            patch.setenv(name, value)
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        assert pool.submit(os.getpid).result() != os.getpid()
    with pool:
        yield pool


@pytest.fixture
def interpreted(interpreter):
    def call(problem, reg, limit, most, constants, g0=None, patience=None):
        problem, g0 = [x.numpy() for x in problem], None if g0 is None else g0.numpy()
        future = interpreter.submit(run, problem, reg, limit, most, constants, g0, patience)
        return [torch.from_numpy(x) for x in future.result()]

    return call


def check(answer, problem, reg, limit, most):
    """Potentials, iterations, convergence and plan are those of the log domain."""
    f, g, iterations, converged, T = reference(*problem, reg, limit, most)
    dtype = problem[0].dtype
    assert answer[4].dtype == dtype
    assert answer[2].dtype == torch.int64
    torch.testing.assert_close(answer[2].double(), iterations.double(), rtol=0, atol=dtype == torch.float32)
    assert answer[3].tolist() == converged.tolist()
    for ours, expected in zip((answer[0], answer[1], answer[4].double()), (f, g, T), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("form", FORMS)
def test_the_iteration_is_that_of_the_log_domain(interpreted, form, dtype):
    sizes = {"on chip": [(1, 1), (1, 5), (16, 16), (33, 17), (70, 49)], "by passes": [(1, 3), (35, 40)]}
    for n, m in sizes[form]:
        problem, limit = make(n, m, dtype), [1e-1, 1e-9]
        answer = interpreted(problem, 0.1, limit, 5, FORMS[form])
        check(answer, problem, 0.1, limit, 5)
        if n > 1:
            assert (answer[0][:, 0] == -torch.inf).all()
            assert answer[2].tolist()[0] < answer[2].tolist()[1] == 5


@pytest.mark.parametrize(
    ("form", "reg", "dtype"),
    [
        ("on chip", 1e-3, torch.float32),
        ("on chip", 1e-4, torch.float32),
        ("on chip", 1e-4, torch.float64),
        ("by passes", 1e-4, torch.float32),
    ],
)
def test_small_regularisation_stays_accurate(interpreted, form, reg, dtype):
    problem, limit = make(11, 18, dtype, batch=1), [1e-3]
    answer = interpreted(problem, reg, limit, 5, FORMS[form])
    check(answer, problem, reg, limit, 5)
    assert torch.isfinite(answer[4]).all()
    torch.testing.assert_close(answer[4].sum(-2), problem[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limits", [{"LARGE": 1.05, "TINY": 1e-200}, {"LARGE": 1e50, "TINY": 0.2}])
def test_absorbing_the_scalings_changes_nothing(interpreted, form, limits):
    problem, limit = make(6, 9), [1e-3, 0.2]
    answer = interpreted(problem, 0.05, limit, 5, FORMS[form] | {"RANGE": {torch.float64: limits}})
    check(answer, problem, 0.05, limit, 5)


@pytest.mark.parametrize("form", FORMS)
def test_a_problem_stops_by_itself_whatever_its_neighbours(interpreted, form):
    (C, a, b), limit = make(5, 6, batch=3), [1e-3, 0.1, 1e-3]
    C[0] = 0
    together = interpreted((C, a, b), 0.2, limit, 6, FORMS[form])
    assert len(set(together[2].tolist())) == 3, "each takes another number of iterations"
    for k in (0, 2):
        alone = interpreted((C[k : k + 1], a[k : k + 1], b[k : k + 1]), 0.2, limit[k : k + 1], 6, FORMS[form])
        assert all(torch.equal(x[0], y[k]) for x, y in zip(alone, together, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_each_problem_has_its_own_regularisation_and_number_of_iterations(interpreted, form):
    problem, reg, most = make(5, 6, batch=3), [0.3, 0.05, 0.1], [3, 1, 2]
    check(interpreted(problem, reg, [0.0] * 3, most, FORMS[form]), problem, reg, [0.0] * 3, most)
    steps = interpreted(problem, reg, [0.0] * 3, most, FORMS[form] | {"STEP": 1, "LOOK": 1}, patience=100)
    check(steps, problem, reg, [0.0] * 3, most)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("form", FORMS)
def test_an_infinite_cost_keeps_mass_away(interpreted, form, dtype):
    problem = make(6, 7, dtype, batch=1)
    problem[0][0, torch.arange(6), torch.arange(6)] = torch.inf
    problem[0][0, 0] = torch.inf  # a node without mass may go nowhere
    problem[0][0, :, -1] = torch.inf
    answer = interpreted(problem, 0.1, [1e-3], 3, FORMS[form])
    check(answer, problem, 0.1, [1e-3], 3)
    assert (answer[4][0].diagonal() == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_iteration_goes_on_from_its_potential(interpreted, form):
    problem, never, short = make(6, 7, batch=1), [0.0], FORMS[form] | {"STEP": 2, "LOOK": 2}
    whole = interpreted(problem, 0.05, never, 5, FORMS[form])
    half = interpreted(problem, 0.05, never, 5, short, patience=1)
    assert half[2].tolist() == [2]
    assert half[3].tolist() == [False]
    rest = interpreted(problem, 0.05, never, 3, FORMS[form], g0=half[1])
    stepped = interpreted(problem, 0.05, never, 5, short, patience=100)
    assert stepped[2].tolist() == [5]
    for k in (0, 1, 4):
        torch.testing.assert_close(rest[k], whole[k], rtol=0, atol=1e-12)
        torch.testing.assert_close(stepped[k], whole[k], rtol=0, atol=1e-12)


def test_an_empty_batch_is_no_error(interpreted):
    for constants in FORMS.values():
        answer = interpreted(make(3, 4, batch=0), 0.1, [], 5, constants)
        assert [tuple(x.shape) for x in answer] == [(0, 3), (0, 4), (0,), (0,), (0, 3, 4)]


def test_what_does_not_fit_is_told(interpreter):
    def told(*case):
        return interpreter.submit(reason, *case).result()

    assert told((1, 500, 16384), torch.float32) is None
    assert "at most, and this one holds 16385" in told((1, 500, 16385), torch.float32)
    assert "at most, and this one holds 8193" in told((1, 500, 8193), torch.float64)
    assert told((70000, 128, 128), torch.float32) is None
    assert "65535 problems" in told((70000, 500, 500), torch.float32)
    assert "float32 or float64" in told((1, 5, 5), torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_machine_without_a_device_is_told():
    assert sinkhorn_triton.unavailable_reason() == "there is no CUDA device"
    with pytest.raises(RuntimeError, match="cannot run: there is no CUDA device"):
        sinkhorn_triton.sinkhorn_cuda(*make(3, 3), *(torch.ones(2) for _ in range(3)))


def test_without_triton_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(sinkhorn_triton, "triton", None)
    assert "Triton is not installed" in sinkhorn_triton.unavailable_reason()


# --------------------------------------------------------------------------------------------------- the benchmark


def compare():
    """The comparison of the benchmark command on a small instance, with invented times."""
    gpu_sinkhorn = benchmark()
    times = iter(range(1, 100))
    with pytest.MonkeyPatch.context() as patch:
        tasks = {"10": {"iterations": 10}, "to 1e-2": {"iterations": 50, "tolerance": 1e-2}}
        patch.setattr(gpu_sinkhorn, "TASKS", tasks)
        table = gpu_sinkhorn.measured(["2x5x6"], "cpu", lambda call: [float(next(times))] * 9, 1e3)
    return table, gpu_sinkhorn.markdown(table, "no machine", 1e3)


def benchmark():
    """The benchmark command; importing it leaves no thread pinning to the other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
            patch.setenv(f"{name}_NUM_THREADS", "1")
        patch.setenv("NPROC", "1")
        return importlib.import_module("benchmarks.gpu_sinkhorn")


def test_the_benchmark_compares_what_solves_the_same(interpreter):
    table, text = interpreter.submit(compare).result()
    fixed, judged = table[table["task"] == "10"], table[table["task"] == "to 1e-2"]
    peers_absent = fixed["status"].str.contains("is not installed")  # GeomLoss is an extra
    assert set(fixed["solver"][peers_absent]) <= {"geomloss"}
    assert (fixed["status"][~peers_absent] == "ok").all()
    assert set(judged["solver"][judged["status"] != "ok"]) == {"geomloss"}, "it has no stopping rule"
    assert judged["marginal_error"].max() < 2e-2
    first = fixed.iloc[0]
    assert (first["solver"], first["seconds"], first["bytes_per_second"]) == ("kernels", 1.0, 2 * 5 * 6 * 4 * 10)
    assert (first["ratio_to_fastest_peer"], first["share_of_copy_bandwidth"]) == (0.5, 2.4)
    assert "| kernels           | 1000.000 ± 0.000 | 0.50" in text
    assert "240%" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_benchmark_says_in_one_sentence_that_there_is_no_gpu(capsys, tmp_path):
    assert benchmark().main(["--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == "Sinkhorn cannot be measured on a GPU here: there is no CUDA device.\n"
    assert not said.out
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- building for the H200

DOUBLES = ("reg", "limit", "f", "g")
INTEGERS = {"unsafe": "*i32", "status": "*i32", "last": "*i32", "converged": "*i8"}
SIZES = ("n", "m", "rows", "blocks", "programs")
ROWS = {"R": 4, "M": 256}
BLOCK = {"R": 64, "M": 32}
KERNELS = [
    ("_on_chip", "fp32", 4, {"N": 64, "M": 64}),
    ("_on_chip", "fp64", 1, {"N": 16, "M": 16}),
    ("_row_pass", "fp32", 4, ROWS | {"P": 256, "Q": 32}),
    ("_column_pass", "fp64", 4, BLOCK),
    ("_log_rows", "fp64", 4, ROWS),
    ("_log_columns", "fp32", 4, BLOCK),
    ("_fill", "fp32", 4, ROWS),
]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter does not compile")
@pytest.mark.parametrize(("name", "real", "warps", "constants"), KERNELS)
def test_the_kernels_build_for_an_h200(tmp_path, monkeypatch, name, real, warps, constants):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(sinkhorn_triton, name)
    limits = sinkhorn_triton.RANGE[torch.float32 if real == "fp32" else torch.float64]
    constants = constants | {k: v for k, v in limits.items() if k in kernel.arg_names}
    types = dict.fromkeys(SIZES, "i32") | dict.fromkeys(DOUBLES, "*fp64") | INTEGERS
    types |= {"iterations": "*i64" if name == "_on_chip" else "*i32"} | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, f"*{real}") for argument in kernel.arg_names}
    aligned = [k for k, argument in enumerate(signature) if signature[argument][0] == "*" or argument == "m"]
    built = triton.compile(
        triton.compiler.ASTSource(
            fn=kernel,
            signature=signature,
            constexprs=constants,
            attrs={(k,): [["tt.divisibility", 16]] for k in aligned},
        ),
        target=triton.backends.compiler.GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, **sinkhorn_triton.BUILD},
    )
    assert ".target sm_90" in built.asm["ptx"]
    assert built.asm["cubin"].startswith(b"\x7fELF")
    assert "atom." not in built.asm["ptx"], "the order of every sum is to be fixed"


# ------------------------------------------------------------------------------------------------ on a CUDA device


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("size", [(64, 49, 49), (8, 196, 80), (3, 1, 1), (3, 70, 33), (2, 300, 500), (1, 1000, 1001)])
@pytest.mark.parametrize("reg", [0.05, 1e-3])
def test_the_device_agrees_with_the_log_domain(size, reg, dtype):
    if why := sinkhorn_triton.unavailable_reason():
        pytest.skip(why)
    batch, n, m = size
    problem, limit = make(n, m, dtype, batch), torch.full((batch,), 1e-4, dtype=torch.float64)
    settings = (torch.full((batch,), reg, dtype=torch.float64), limit, torch.full((batch,), 60))
    given = [x.cuda() for x in (*problem, *settings)]
    answer = [x.cpu() for x in sinkhorn_triton.sinkhorn_cuda(*given)]
    check(answer, problem, reg, limit, 60)
    again = sinkhorn_triton.sinkhorn_cuda(*given)
    assert all(torch.equal(x, y.cpu()) for x, y in zip(answer, again, strict=True))
