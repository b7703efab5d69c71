"""The ``matchmark`` command: list · solve · reproduce · data · report · check.

Exit codes: 0 done, 1 the gate failed or a solver could not run here, 2 what was passed cannot be used, 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import ast
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from reproductions import PAPERS, UserError
from reproductions.claims import load_paper
from reproductions.console import (
    RESULTS,
    DataOption,
    DeviceOption,
    ResultsOption,
    check_folder,
    checked_device,
    err,
    out,
    progress_bar,
)
from reproductions.data_commands import data_app, print_data_sets
from reproductions.experiment import Options, Outcome, reproduce
from reproductions.gate import compare, reference_tables
from reproductions.report import measured_text, published_text, read_tables, write_report
from reproductions.solve_file import read_problem, write_solution
from solvers import InvalidProblem, Solution, Status, UnknownSolver, make_solver
from solvers.registry import default_solver, solver_class, solver_names, unavailable

app = typer.Typer(
    name="matchmark",
    help="Benchmark and reproduction suite for matching and optimal-transport solvers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]


def main() -> None:
    """Run the command; turn what the user can mend into one sentence and exit code 2."""
    try:
        app()
    except (UserError, InvalidProblem, UnknownSolver) as error:
        err.print(f"matchmark: {error}", soft_wrap=True, markup=False)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk; finished rows are kept
        err.print(f"matchmark: {error.strerror}: {error.filename}", soft_wrap=True, markup=False)
        sys.exit(2)


@app.command("list")
def list_() -> None:
    """The solvers with what they can do, the papers and the data sets."""
    table = Table(title="Solvers")
    for column in ("name", "solves", "exact", "bound", "gradients", "batched", "devices", "available"):
        table.add_column(column, overflow="fold")
    for name in solver_names():
        reason = unavailable(name)
        try:
            cls = solver_class(name)
        except ImportError:
            table.add_row(name, *["?"] * 6, f"no: {reason}")
            continue
        table.add_row(
            name,
            ", ".join(t.__name__.removesuffix("Problem") for t in cls.problem_types)
            + (f" (n ≤ {cls.max_size})" if cls.max_size else ""),
            _tick(cls.exact),
            _tick(cls.gives_bound),
            ", ".join(cls.differentiable) or "–",
            _tick(cls.batched),
            ", ".join(cls.devices),
            "yes" if reason is None else f"no: {reason}",
        )
    out.print(table)
    table = Table(title="Papers")
    for column in ("name", "title", "claims"):
        table.add_column(column)
    for name in PAPERS:
        paper = load_paper(name)
        table.add_row(name, paper.title, str(len(paper.claims)))
    out.print(table)
    print_data_sets(None)


@app.command()
def solve(
    file: Annotated[
        Path, typer.Argument(help="An .npz with cost (and a, b) or A and B (and linear, constant), or a .dd.")
    ],
    solver: Annotated[str | None, typer.Option("--solver", help="Registry name; see `matchmark list`.")] = None,
    problem: Annotated[
        str | None, typer.Option("--problem", help="transport, assignment or quadratic_assignment.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A setting of the solver, NAME=VALUE.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Default: FILE.solution.npz")] = None,
    time_limit: Annotated[float | None, typer.Option("--time-limit", help="Seconds.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Solve the problem in a file; write the solution to a file and a summary to the screen."""
    if solver is not None and (reason := unavailable(solver)):
        raise UserError(f"the solver {solver} cannot run here: {reason}")
    given = read_problem(file, problem, solver)
    try:
        chosen = make_solver(solver or default_solver(given), **_settings(settings), time_limit=time_limit, seed=seed)
        solution = chosen.solve(given.to(checked_device(device)))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    path = output or file.with_suffix(".solution.npz")
    write_solution(path, solution)
    _print_solution(solution, path)
    if solution.status is Status.UNAVAILABLE:
        raise typer.Exit(1)


@app.command("reproduce")
def reproduce_(
    papers: Annotated[list[str] | None, typer.Argument(help="Names of papers; all when left out.")] = None,
    results: ResultsOption = RESULTS,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Rows measured at once.")] = 1,
    data: DataOption = None,
    train: Annotated[
        bool, typer.Option("--train", help="First train the encoders that data sets lack: long, on a GPU.")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a Dask cluster to measure on, tcp://HOST:PORT.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Published time limits and repetitions: hours.")] = False,
) -> None:
    """Regenerate the tables of papers; finished rows are reused, a stopped run goes on where it stopped."""
    check_folder(data)
    options = Options(results, data, checked_device(device), seed, jobs, train, full, scheduler)
    try:
        for name in papers or PAPERS:
            _print_outcome(_reproduce_with_progress(name.replace("-", "_"), options), results)
    except KeyboardInterrupt:
        err.print("matchmark: stopped; what is finished is kept, the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None
    out.print(f"report page: {write_report(results)}", soft_wrap=True)


@app.command()
def report(results: ResultsOption = RESULTS) -> None:
    """Make the report page from the tables on disk."""
    out.print(f"report page: {write_report(results)}", soft_wrap=True)


@app.command()
def check(
    results: ResultsOption = RESULTS,
    against: Annotated[
        str, typer.Option("--against", help="Git revision or folder with the reference tables.")
    ] = "HEAD",
) -> None:
    """Compare the tables on disk with the committed ones; exit 1 when one is worse, missing or not finite."""
    findings = compare(read_tables(results), reference_tables(results, against))
    failed = [f for f in findings if not f.passed]
    for f in findings:
        now = "–" if f.measured is None else f"{f.measured:.4g}"
        word = "ok  " if f.passed else "FAIL"
        out.print(
            f"{word} {' / '.join(f.key[:4])}: {f.reference:.4g} → {now}, {f.sentence}", soft_wrap=True, markup=False
        )
    if not findings:
        out.print(f"FAIL nothing to compare: no measured number in the reference tables of {against}")
    else:
        out.print(f"{len(findings) - len(failed)} of {len(findings)} numbers hold")
    if failed or not findings:
        raise typer.Exit(1)


def _reproduce_with_progress(paper: str, options: Options) -> Outcome:
    with progress_bar() as progress:
        task = progress.add_task(paper, total=1.0)
        return reproduce(paper, options, partial(_advance, progress, task, paper))


def _advance(progress: Progress, task: TaskID, paper: str, what: str, fraction: float) -> None:
    progress.update(task, description=f"{paper}: {what}", completed=fraction)


def _print_outcome(outcome: Outcome, results: Path) -> None:
    name = outcome.paper.name
    for table, frame in read_tables(results).get(name, {}).items():
        measured = frame[frame["measured"].notna()]
        if measured.empty:
            continue
        units = ", ".join(measured["unit"].dropna().unique())  # some metrics have none
        shown = Table(title=f"{name}: {table.replace('_', ' ')}" + (f" ({units})" if units else ""))
        for column in ("row", "column", "measured (95 %)", "published", "verdict"):
            shown.add_column(column, overflow="fold")
        for _, row in measured.iterrows():
            shown.add_row(row["row"], row["column"], measured_text(row), published_text(row), row["verdict"])
        out.print(shown)
    not_run = sum(r.verdict == "not run" for r in outcome.results)
    words = f"{outcome.measured} rows measured, {outcome.reused} reused from earlier runs"
    if not_run:
        words += f"; {not_run} published numbers are not run, the reason stands in each table"
    out.print(f"{name}: {words}", soft_wrap=True)
    out.print(f"tables: {results / name}", soft_wrap=True)


def _print_solution(solution: Solution, path: Path) -> None:
    def numbers(x: torch.Tensor | None) -> str:
        return "–" if x is None else f"{x.item():.9g}"

    lines = {
        "solver": f"{solution.solver} ({', '.join(f'{k}={v}' for k, v in solution.settings.items())})",
        "status": f"{solution.status.name}: {solution.status.sentence}",
        "note": solution.message,
        "value": numbers(solution.value),
        "lower bound": numbers(solution.lower_bound),
        "gap": numbers(solution.gap),
        "marginal error": numbers(solution.marginal_error),
        "iterations": "–" if solution.iterations is None else str(solution.iterations.item()),
        "time": f"{solution.solve_time:.4g} s, after {solution.prepare_time:.4g} s of preparation",
        "solution": str(path),
    }
    for name, text in lines.items():
        if text not in ("", "–"):
            out.print(f"{name:>14}  {text}", soft_wrap=True, markup=False)


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """``["reg=0.1", "gradient=unrolled"]`` as a dictionary; what Python reads as a literal is one."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, not {pair!r}")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def _tick(yes: bool) -> str:
    return "yes" if yes else "–"
