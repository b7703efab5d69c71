"""The one template every solver follows: validate → device → prepare → run under the clock → verify → Solution."""

from __future__ import annotations

import dataclasses
import numbers
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numba
import torch
from torch import Tensor

from solvers.lazy_plan import LazyPlan
from solvers.point_clouds import PointCloudTransportProblem
from solvers.problems import (
    AssignmentProblem,
    PlanProblem,
    Problem,
    TransportProblem,
)
from solvers.solution import Progress, Solution, Status
from solvers.verify import Facts, InvalidSolution, check, recompute


class Clock:
    """Seconds since the run began, and whether it is to end: the time limit has passed, or Ctrl-C was pressed."""

    def __init__(self, time_limit: float | None) -> None:
        self.start = time.perf_counter()
        self.time_limit = time_limit
        self.interrupted = False

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    @property
    def expired(self) -> bool:
        return self.interrupted or (self.time_limit is not None and self.elapsed >= self.time_limit)

    @property
    def remaining(self) -> float:
        if self.interrupted:
            return 0.0
        return float("inf") if self.time_limit is None else max(0.0, self.time_limit - self.elapsed)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C makes the clock expire, the second is raised as ever; on the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def expire(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, expire)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@dataclass(kw_only=True)
class Answer:
    """What an algorithm hands back to the template: only what it alone can know.

    ``statuses`` is one Status for the whole batch or one of each problem in row-major order. A ``lower_bound`` is
    given only by solvers without dual potentials; from potentials the referee computes it.
    """

    statuses: Status | Sequence[Status]
    plan: Tensor | LazyPlan | None = None
    permutation: Tensor | None = None
    potentials: tuple[Tensor, Tensor] | None = None
    lower_bound: Tensor | None = None
    iterations: Tensor | int | None = None
    message: str = ""
    history: tuple[Progress, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A solver: settings as fields, what it can do as class attributes, and one method that runs.

    A subclass is final; it sets the class attributes below and implements ``_run`` (and ``_prepare`` when there is
    something to compile or to lay out, which is timed apart).

    Attributes:
        time_limit: seconds after which the best feasible answer found so far is returned; None for no limit.
        seed: of every random choice the solver makes; the same seed gives the same answer.
    """

    time_limit: float | None = None
    seed: int = 0

    name: ClassVar[str]
    problem_types: ClassVar[tuple[type, ...]]
    exact: ClassVar[bool] = False
    feasible: ClassVar[bool] = True  # whether its plans meet both marginals
    gives_bound: ClassVar[bool] = False
    differentiable: ClassVar[tuple[str, ...]] = ()
    batched: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    anytime: ClassVar[bool] = False  # whether it holds an answer at any moment, which Ctrl-C makes it return
    max_size: ClassVar[int | None] = None
    reference: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), str(f.type)
            optional = (value is None and "None" in kind) or (isinstance(value, Tensor) and "Tensor" in kind)
            if kind.startswith(("int", "float")) and not optional:
                wanted = numbers.Integral if kind.startswith("int") else numbers.Real
                if isinstance(value, bool) or not isinstance(value, wanted):
                    raise TypeError(
                        f"{f.name} must be {'an integer' if kind.startswith('int') else 'a number'}, not {value!r}"
                    )
        if self.time_limit is not None and not self.time_limit >= 0:
            raise ValueError(f"time_limit must be a number of seconds ≥ 0 or None, not {self.time_limit!r}")

    def _require_counts(self, *names: str) -> None:
        """Refuse settings that count something and are below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")

    @classmethod
    def unavailable(cls, problem: Problem | None = None) -> str | None:
        """Why this solver cannot run on this machine, or not on this problem (a licence); None when it can."""
        return None

    def _prepare(self, problem: Any) -> Any:
        """Compile and lay out the data; what it returns is handed to ``_run``."""
        return None

    @abstractmethod
    def _run(self, problem: Any, prepared: Any, clock: Clock) -> Answer:
        """The algorithm. ``problem`` is of one of the claimed types, on one of the claimed devices."""

    def _settled(self, problem: Any, answer: Answer, facts: Facts) -> Answer:
        """The answer with a last word on its statuses, once the referee's figures are known."""
        return answer

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as a dictionary, as they are recorded with every solution."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @final
    def solve(self, problem: Problem) -> Solution:
        """Solve one problem or a batch of them.

        Raises:
            TypeError: a problem of a type this solver does not claim.
            ValueError: a problem larger than this solver takes.
            InvalidSolution: the referee refuses the answer (a defect of the solver).
        """
        self._accept(problem)
        if reason := self.unavailable(problem):
            return self._unavailable_solution(problem, reason)
        home = problem.device
        if home.type not in self.devices:
            problem = problem.to(self.devices[0])
        with threads_of_torch():
            began = time.perf_counter()
            prepared = self._prepare(problem)
            _synchronize(problem.device)
            clock = Clock(self.time_limit)
            with clock.interruptible() if self.anytime else nullcontext():
                answer = self._run(problem, prepared, clock)
            if clock.interrupted:
                answer.message = f"interrupted{answer.message and ': ' + answer.message}"
            _synchronize(problem.device)
            prepare_time, solve_time = clock.start - began, clock.elapsed
            x = answer.plan if isinstance(problem, PlanProblem) else answer.permutation
            assert x is not None, f"{self.name} returned no plan or permutation for a {type(problem).__name__}"
            facts = recompute(problem.detach(), x.detach(), answer.potentials)
            answer = self._settled(problem, answer, facts)
            solution = self._solution(problem, x, answer, facts, prepare_time, solve_time)
            faults = check(problem, solution, facts=facts)
        if faults:
            raise InvalidSolution(f"{self.name} returned an invalid solution: {'; '.join(faults)}")
        return solution if problem.device == home else _moved(solution, home)

    def _accept(self, problem: Problem) -> None:
        if not isinstance(problem, self.problem_types):
            claimed = " or ".join(t.__name__ for t in self.problem_types)
            hint = ""
            if isinstance(problem, AssignmentProblem) and TransportProblem in self.problem_types:
                hint = "; problem.to_transport() converts a square one exactly"
            elif isinstance(problem, TransportProblem) and AssignmentProblem in self.problem_types:
                hint = "; problem.to_assignment() converts one with equal sizes and uniform weights exactly"
            elif isinstance(problem, PointCloudTransportProblem):
                hint = "; problem.to_dense() is the same problem with its cost stored"
            raise TypeError(f"{self.name} solves a {claimed}, not a {type(problem).__name__}{hint}")
        if self.max_size is not None and (size := max(problem.shape[-2:])) > self.max_size:
            raise ValueError(f"{self.name} takes problems of size n ≤ {self.max_size}, and this one has n = {size}")

    def _solution(
        self, problem: Problem, x: Any, answer: Answer, facts: Facts, prepare_time: float, solve_time: float
    ) -> Solution:
        """Everything the algorithm has no say in: value, errors and bounds are the referee's."""
        batch = problem.batch_shape
        statuses = answer.statuses
        statuses = (statuses,) * batch.numel() if isinstance(statuses, Status) else tuple(statuses)
        value = facts.value
        if problem.requires_grad or x.requires_grad:
            potentials = answer.potentials if self.exact else None
            if type(problem) is TransportProblem:
                value = _Value.apply(problem.cost, problem.a, problem.b, x, *(potentials or (None, None)), value)
            else:
                value = problem.objective(x)
                if potentials is not None and isinstance(problem, PlanProblem):
                    value = value + _envelope(problem, potentials)
        bound = answer.lower_bound if facts.lower_bound is None else facts.lower_bound
        finite = torch.isfinite(facts.value)
        if not bool(finite.all()):
            each = zip(statuses, finite.reshape(-1).tolist(), strict=True)
            statuses = tuple(s if ok else Status.NON_FINITE for s, ok in each)
        iterations = answer.iterations
        if isinstance(iterations, int):
            iterations = torch.full(batch, iterations)
        return Solution(
            problem=problem,
            solver=self.name,
            settings=self.settings,
            status=Status.worst(statuses),
            statuses=statuses,
            value=value,
            plan=answer.plan,
            permutation=answer.permutation,
            lower_bound=bound,
            marginal_error=facts.marginal_error,
            potentials=answer.potentials,
            iterations=iterations,
            message=answer.message,
            prepare_time=prepare_time,
            solve_time=solve_time,
            history=answer.history,
        )

    def _unavailable_solution(self, problem: Problem, reason: str) -> Solution:
        status = Status.UNAVAILABLE
        return Solution(
            problem=problem,
            solver=self.name,
            settings=self.settings,
            status=status,
            statuses=(status,) * problem.batch_shape.numel(),
            value=torch.full(problem.batch_shape, float("nan"), dtype=torch.float64, device=problem.device),
            message=reason,
        )


_RUNNING = threading.RLock()


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Compiled kernels run on as many threads as torch, and torch keeps its number.

    The two can share one OpenMP runtime, whose thread count numba sets anew when it starts its own threads. One solve
    runs at a time: each uses all threads as it is, and not every threading layer of numba bears two callers.
    """
    with _RUNNING:
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _envelope(problem: PlanProblem, potentials: tuple[Tensor, Tensor]) -> Tensor:
    """A term worth zero whose gradient to the weights is that of the dual objective (the envelope theorem).

    Together with ⟨C, T⟩ at a fixed optimal T, whose gradient to C is T, it makes the optimal value differentiable:
    ∂V/∂C = T, ∂V/∂a = f, ∂V/∂b = g (f and g up to a constant that cancels while Σa = Σb).
    """
    f, g = (p.detach() for p in potentials)
    dual = problem.dual_objective(f, g)
    return dual - dual.detach()


class _Value(torch.autograd.Function):
    """⟨C, T⟩, which the referee has computed, as a function of C and T: ∂V/∂C = T, ∂V/∂T = C.

    With the potentials of an optimal T also as the optimal value of a and b, ∂V/∂a = f and ∂V/∂b = g (see
    ``_envelope``).
    """

    @staticmethod
    def forward(
        ctx: Any, C: Tensor, a: Tensor, b: Tensor, T: Tensor, f: Tensor | None, g: Tensor | None, value: Tensor
    ) -> Tensor:
        ctx.save_for_backward(C, T, f, g)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        C, T, f, g = ctx.saved_tensors
        d = d.to(T.dtype)
        to_C, to_a, to_b, to_T, *_ = ctx.needs_input_grad
        return (
            d[..., None, None] * T if to_C else None,
            d[..., None] * f if to_a and f is not None else None,
            d[..., None] * g if to_b and g is not None else None,
            d[..., None, None] * C if to_T else None,
            None,
            None,
            None,
        )


def _moved(solution: Solution, device: torch.device) -> Solution:
    """The solution with every tensor on ``device``."""

    def there(x: Any) -> Any:
        if isinstance(x, Tensor | Problem | LazyPlan):
            return x.to(device)
        return tuple(there(p) for p in x) if isinstance(x, tuple) and x and isinstance(x[0], Tensor) else x

    fields = {f.name: there(getattr(solution, f.name)) for f in dataclasses.fields(solution)}
    return Solution(**fields)
