"""The ``matchmark`` command: list · solve · match · reproduce · data · report · check.

Exit codes: 0 done, 1 the gate failed or a solver could not run here, 2 what was passed cannot be used, 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from reproductions import PAPERS, UserError
from reproductions.blind_match.method import Distortion
from reproductions.check_command import check_
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
from reproductions.faults import said_in_one_sentence
from reproductions.match_files import (
    FileMatch,
    check_sizes,
    match_embeddings,
    output_paths,
    read_embeddings,
    read_truth,
    write_match,
)
from reproductions.opening import check_writable
from reproductions.progress import Lines
from reproductions.report import measured_text, published_text, read_tables
from reproductions.report_page import write_report
from reproductions.solve_file import read_problem, write_solution
from solvers import Solution, Status, make_solver
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
SettingsOption = Annotated[list[str] | None, typer.Option("--set", help="A setting of the solver, NAME=VALUE.")]


def main() -> None:
    """Run the command; turn what the user can mend into one sentence and exit code 2."""
    with said_in_one_sentence("matchmark", err):
        app()


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
    settings: SettingsOption = None,
    output: Annotated[Path | None, typer.Option("--output", help="Default: FILE.solution.npz")] = None,
    time_limit: Annotated[float | None, typer.Option("--time-limit", help="Seconds.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Solve the problem in a file; write the solution to a file and a summary to the screen."""
    if solver is not None and (reason := unavailable(solver)):
        raise UserError(f"the solver {solver} cannot run here: {reason}")
    given, path = read_problem(file, problem, solver), output or file.with_suffix(".solution.npz")
    check_writable(path.parent)
    try:
        chosen = make_solver(solver or default_solver(given), **_settings(settings), time_limit=time_limit, seed=seed)
        solution = chosen.solve(given.to(checked_device(device)))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    write_solution(path, solution)
    _print_solution(solution, path)
    if solution.status is Status.UNAVAILABLE:
        raise typer.Exit(1)


@app.command("match")
def match_(
    a: Annotated[Path, typer.Argument(help="Embeddings (n, d): an .npy, or an .npz with one array.")],
    b: Annotated[Path, typer.Argument(help="Embeddings (n, d') of the other side, in any order.")],
    metric: Annotated[str, typer.Option("--metric", help="gw, cka, knn or inner_product.")] = "gw",
    k: Annotated[int | None, typer.Option("--k", help="Neighbours, of knn alone; 4 when left out.")] = None,
    solver: Annotated[str, typer.Option("--solver", help="One for quadratic assignments.")] = "branch_and_bound",
    settings: SettingsOption = None,
    names_a: Annotated[Path | None, typer.Option("--names-a", help="A text file, one name a line.")] = None,
    names_b: Annotated[Path | None, typer.Option("--names-b", help="A text file, one name a line.")] = None,
    truth: Annotated[Path | None, typer.Option("--truth", help="An .npy: the partner in B of every row of A.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="PREFIX of .csv, .json and .png. Default: A's stem + .match")
    ] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds.")] = 60.0,
    seed: SeedOption = 0,
) -> None:
    """Match two files of embeddings by their inner distances alone; Ctrl-C ends the search with the best so far."""
    if k is not None and metric != "knn":
        raise UserError(f"--k counts the neighbours of --metric knn, and the metric is {metric}")
    if reason := unavailable(solver):
        raise UserError(f"the solver {solver} cannot run here: {reason}")
    given = [path for path in (a, b, names_a, names_b, truth) if path is not None]
    try:
        distortion = Distortion(metric, 4 if k is None else k)  # type: ignore[arg-type]  # it checks the name itself
        chosen = make_solver(solver, **_settings(settings), time_limit=time_limit, seed=seed)
        sides = read_embeddings(a, names_a), read_embeddings(b, names_b)
        check_sizes(*sides)
        partners = None if truth is None else read_truth(truth, len(sides[0].vectors))
        paths = output_paths(output or a.with_suffix(".match"), given)
        with err.status(f"matching {len(sides[0].vectors)} members; Ctrl-C takes the best so far"):
            found = match_embeddings(*sides, distortion, chosen, partners)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        err.print("matchmark: stopped before there was a match; nothing is written", soft_wrap=True)
        raise typer.Exit(130) from None
    if isinstance(found, Solution):
        err.print(f"matchmark: the solver {solver} cannot run here: {found.message}", soft_wrap=True, markup=False)
        raise typer.Exit(1)
    write_match(paths, found)
    _print_match(found, paths)


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


app.command("check")(check_)


@app.command()
def report(results: ResultsOption = RESULTS) -> None:
    """Make the report page from the tables on disk."""
    out.print(f"report page: {write_report(results)}", soft_wrap=True)


app.command("check")(check_)


def _reproduce_with_progress(paper: str, options: Options) -> Outcome:
    if not err.is_terminal:
        with Lines(err, paper) as lines:
            return reproduce(paper, options, lines.tell)
    with progress_bar() as progress:
        task = progress.add_task(paper, total=1.0)
        return reproduce(paper, options, partial(_advance, progress, task, paper))


def _advance(progress: Progress, task: TaskID, paper: str, what: str, fraction: float) -> None:
    progress.update(task, description=escape(f"{paper}: {what}"), completed=fraction)


def _print_outcome(outcome: Outcome, results: Path) -> None:
    name = outcome.paper.name
    for table, frame in read_tables(results).get(name, {}).items():
        measured = frame[frame["measured"].notna()]
        if measured.empty:
            continue
        units = ", ".join(measured["unit"].dropna().unique())  # some metrics have none
        shown = Table(title=f"{name}: {outcome.paper.title_of(table)}" + (f" ({units})" if units else ""))
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
    for note in outcome.notes:
        err.print(f"matchmark: {note}", soft_wrap=True, markup=False)


def _print_solution(solution: Solution, path: Path) -> None:
    def numbers(x: torch.Tensor | None) -> str:
        return "–" if x is None else f"{x.item():.9g}"

    lines = {
        "solver": _solver_text(solution),
        "status": f"{solution.status.name}: {solution.status.sentence}",
        "note": solution.message,
        "value": numbers(solution.value),
        "lower bound": numbers(solution.lower_bound),
        "gap": numbers(solution.gap),
        "marginal error": numbers(solution.marginal_error),
        "iterations": "–" if solution.iterations is None else str(solution.iterations.item()),
        "time": _time_text(solution),
        "solution": str(path),
    }
    _print_lines(lines)


def _print_match(found: FileMatch, paths: Sequence[Path]) -> None:
    solution, match, accuracy = found.solution, found.match, found.accuracy
    lines = {
        "metric": f"{found.distortion.title}, {len(match.permutation)} members",
        "solver": _solver_text(solution),
        "status": f"{solution.status.name}: {solution.status.sentence}",
        "note": solution.message,
        "value / n²": f"{match.cost:.9g}",
        "bound / n²": "–" if match.bound is None else f"{match.bound:.9g}",
        "gap / n²": "–" if found.gap is None else f"{found.gap:.3g}",
        "accuracy": "–"
        if accuracy is None
        else f"{accuracy.mean:.1f} % (95 %: {accuracy.low:.1f} … {accuracy.high:.1f})",
        "time": _time_text(solution),
        "files": ", ".join(map(str, paths)),
    }
    _print_lines(lines)


def _solver_text(solution: Solution) -> str:
    return f"{solution.solver} ({', '.join(f'{k}={v}' for k, v in solution.settings.items())})"


def _time_text(solution: Solution) -> str:
    return f"{solution.solve_time:.4g} s, after {solution.prepare_time:.4g} s of preparation"


def _print_lines(lines: Mapping[str, str]) -> None:
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
