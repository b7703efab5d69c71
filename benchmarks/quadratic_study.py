r"""``python -m benchmarks.quadratic_study``: every solver of quadratic assignments with the same time on each instance.

Values, bounds, proofs and times into ``results/benchmarks/quadratic_assignment``: a table and a performance profile
(Dolan and Moré, Mathematical Programming 91, 2002). The instances are generated point clouds and, where ``--qaplib``
names a folder of them, instances of QAPLIB. What is measured is kept: stopped, it goes on. Proofs take longer::

    python -m benchmarks.quadratic_study --qaplib DIR --instances nug12 nug16b --solvers branch_and_bound gurobi \
        --time-limit 600 --threads 2 --name proofs
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from scipy.optimize import quadratic_assignment

from benchmarks.qaplib import QaplibError, best_known, read_dat
from benchmarks.study.__main__ import ROOT, provenance
from reproductions.opening import open_results
from reproductions.storage import Cache, content_hash, write_atomically
from solvers import QuadraticAssignmentProblem, Status, make_solver
from solvers.registry import BUILTIN, solver_class, unavailable

NAME = "quadratic_assignment"
QAPLIB = (
    *("nug12", "had12", "rou12", "scr12", "tai12a", "chr12a", "nug15", "rou15", "chr15a", "esc16a", "had16", "nug20"),
    *("had20", "tai20a", "chr20a", "bur26a", "nug30", "tai30a", "kra30a", "tho30", "esc32a", "ste36a", "tai40a"),
)
GENERATED = tuple((kind, n) for n in (8, 10, 12, 15, 20, 30) for kind in ("planted", "unrelated"))
MANY = 10**9
COLUMNS = ["instance", "n", "solver", "library", "status", "value", "bound", "best", "value_gap", "bound_gap", "proven",
           "iterations", "seconds", "reason"]  # fmt: skip
Problem = tuple[np.ndarray, np.ndarray]
Answer = tuple[float, float | None, int | None, str]
Row = dict[str, Any]


def generated(kind: str, n: int) -> Problem:
    """A, B of two clouds of unit vectors: one a noisy turn of the other, or unrelated; standardised distances."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((2, n, 16))
    if kind == "planted":
        y = x[rng.permutation(n)] @ np.linalg.qr(rng.standard_normal((16, 16)))[0] + 0.35 * y
    D = [np.linalg.norm(z[:, None] - z[None], axis=-1) for z in (x, y)]
    off = ~np.eye(n, dtype=bool)
    A, B = (np.where(off, (d - d[off].mean()) / d[off].std(), 0.0) for d in D)
    return -A, B


def _ours(name: str, A: np.ndarray, B: np.ndarray, limit: float, **settings: Any) -> Answer:
    solution = make_solver(name, time_limit=limit, **settings).solve(QuadraticAssignmentProblem(A, B))
    if solution.status is Status.UNAVAILABLE:
        return math.nan, None, None, f"not run: {solution.message}"
    bound = None if solution.lower_bound is None else float(solution.lower_bound)
    iterations = None if solution.iterations is None else int(solution.iterations)
    return float(solution.value), bound, iterations, solution.status.name


def _scipy(method: str, A: np.ndarray, B: np.ndarray, limit: float) -> Answer:
    """Runs from random starts, as many as the time allows, 100 at most; the first is always finished."""
    rng, until, best = np.random.default_rng(0), time.perf_counter() + limit, math.inf
    start: dict[str, Any] = {"P0": "randomized"} if method == "faq" else {}
    for k in range(100):
        if k and time.perf_counter() >= until:
            return best, None, k, "TIME_LIMIT"
        options = {"rng": rng} | (start if k else {})
        best = min(best, float(quadratic_assignment(A, B, method=method, options=options).fun))
    return best, None, 100, "CONVERGED"


CONTENDERS: dict[str, tuple[str, Callable[..., Answer]]] = {
    "branch_and_bound": ("matchmark", partial(_ours, "branch_and_bound")),
    "hahn_grant": ("matchmark", partial(_ours, "hahn_grant", max_iterations=5000)),
    "local_search": ("matchmark", partial(_ours, "local_search", max_iterations=MANY)),
    "mpopt": ("matchmark", partial(_ours, "mpopt", max_iterations=5000)),
    "faq": ("matchmark", partial(_ours, "faq", starts=100)),
    "two_opt": ("matchmark", partial(_ours, "two_opt", starts=100)),
    "gurobi": ("gurobi", partial(_ours, "gurobi")),
    "highs": ("highs", partial(_ours, "highs")),
    "pylibmgm": ("pylibmgm", partial(_ours, "pylibmgm")),
    "scipy_faq": ("scipy", partial(_scipy, "faq")),
    "scipy_2opt": ("scipy", partial(_scipy, "2opt")),
}


def instances(folder: Path | None, chosen: Sequence[str] = ()) -> dict[str, tuple[Problem, float | None]]:
    """The problems by name, with the value best known of them: those chosen, or the study's own.

    Raises:
        QaplibError: a folder without the instances, or with broken ones; a name of none.
    """
    names = chosen or [f"{kind}{n}" for kind, n in GENERATED] + ([] if folder is None else [*QAPLIB])
    found: dict[str, tuple[Problem, float | None]] = {}
    for name in names:
        if cloud := re.fullmatch("(planted|unrelated)([1-9][0-9]*)", name):
            found[name] = generated(cloud[1], int(cloud[2])), None
        elif folder is None:
            raise QaplibError(f"{name} is neither plantedN nor unrelatedN: --qaplib must name the folder it is in")
        else:
            path = folder / f"{name}.dat"
            A, B = read_dat(path)
            found[name] = (A, B), best_known(path, A, B)
    return found


def measure(name: str, problem: Problem, best: float | None, solver: str, limit: float) -> Row:
    """The row of one contender."""
    library, run = CONTENDERS[solver]
    row: Row = {"instance": name, "n": len(problem[0]), "solver": solver, "library": library, "best": best}
    reason = unavailable(solver) if library != "scipy" else None
    if reason is None and (most := largest(solver)) is not None and len(problem[0]) > most:
        reason = f"takes n ≤ {most}"
    if reason is not None:
        return row | {"status": "not run", "reason": reason}
    _warm_up(solver)
    began = time.perf_counter()
    value, bound, iterations, status = run(*problem, limit)
    seconds = time.perf_counter() - began
    status, _, reason = status.partition(": ")
    row |= {"status": status, "reason": reason, "value": value, "bound": bound, "iterations": iterations}
    row |= {"seconds": seconds, "proven": status == "OPTIMAL"}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


@cache
def _warm_up(solver: str) -> None:
    CONTENDERS[solver][1](*generated("planted", 5), 0.05)


def largest(solver: str) -> int | None:
    """The largest problem a solver of the registry takes."""
    return solver_class(solver).max_size if solver in BUILTIN else None


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with their gaps, relative to the best value known, or else found here."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in ("value", "bound", "best", "iterations", "seconds"):
        table[column] = table[column].astype(float)
    found = table.groupby("instance")["value"].transform("min")
    table["best"] = np.fmin(table["best"], found)
    size = table["best"].abs().clip(lower=1.0)
    table["value_gap"] = ((table["value"] - table["best"]) / size).clip(lower=0)
    table["bound_gap"] = ((table["best"] - table["bound"]) / size).clip(lower=0)
    return table


def markdown(table: pd.DataFrame, limit: float, threads: int, machine: str) -> str:
    """The summary of the solvers, then every instance."""
    ran = table[table["status"] != "not run"]
    lines = [
        "# Quadratic assignment",
        f"Every solver has {limit:g} s and {threads} thread{'s'[: threads > 1]} on each instance; measured on "
        f"{machine}. Gaps are relative to the best value known (QAPLIB's, or the best found here); what is proven has "
        "value = lower bound. The time is of the whole call, from arrays to the checked answer, compilation excluded. "
        "Iterations are nodes, sweeps, moves or starts, as the solver counts them. Gurobi starts from a permutation "
        "of our tabu search and HiGHS falls back on one: their values are ours, their bounds and proofs their own.",
        "## By solver",
    ]
    summary = [
        {
            "solver": _name(str(solver), rows["library"].iloc[0]),
            "instances": len(rows),
            "best found": int((rows["value_gap"] <= 1e-9).sum()),
            "mean gap": f"{100 * rows['value_gap'].mean():.2f} %",
            "largest gap": f"{100 * rows['value_gap'].max():.2f} %",
            "mean gap of the bound": _percent(rows["bound_gap"].mean()),
            "proven": int(rows["proven"].astype(bool).sum()),
            "median seconds": f"{rows['seconds'].median():.2g}",
        }
        for solver, rows in ran.groupby("solver", sort=False)
    ]
    lines.append(pd.DataFrame(summary).to_markdown(index=False, disable_numparse=True))
    for name, rows in table.groupby("instance", sort=False):
        shown = pd.DataFrame(
            {
                "solver": [_name(*row) for row in zip(rows["solver"], rows["library"], strict=True)],
                "value": rows["value"].map(_number),
                "gap": rows["value_gap"].map(_percent),
                "lower bound": rows["bound"].map(_number),
                "gap of the bound": rows["bound_gap"].map(_percent),
                "proven": rows["proven"].map(lambda x: "yes" if x is True else ""),
                "iterations": rows["iterations"].map(_number),
                "seconds": rows["seconds"].map(lambda x: "–" if pd.isna(x) else f"{x:.2g}"),
                "but": rows["reason"].fillna(""),
            }
        )
        best = rows["best"].iloc[0]
        lines += [f"## {name}: best known {_number(best)}", shown.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(lines) + "\n"


def _name(solver: str, library: str) -> str:
    return f"**{solver}**" if library == "matchmark" else solver


def _percent(x: float) -> str:
    return "–" if pd.isna(x) else f"{100 * x:.2f} %"


def _number(x: float) -> str:
    return "–" if pd.isna(x) else f"{x:.10g}"


def figure(table: pd.DataFrame) -> bytes:
    """Shares of the instances: value within a gap, bound within a gap, proven within a time."""
    ran = table[table["status"] != "not run"]
    solvers = list(ran["solver"].unique())
    colours = dict(zip(solvers, sns.color_palette("husl", len(solvers)), strict=True))
    instances = table["instance"].nunique()
    proven = ran["seconds"].where(ran["proven"].astype(bool))
    panels = (
        ("value within a gap of the best", ran["value_gap"].clip(lower=1e-5), "relative gap", (1e-5, 1.0)),
        ("lower bound within a gap of the best", ran["bound_gap"].clip(lower=1e-5), "relative gap", (1e-5, 1.0)),
        ("proven optimal within a time", proven, "seconds", (1e-3, max(1.0, float(ran["seconds"].max())))),
    )
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        fig = Figure(figsize=(18, 6), layout="constrained")
        for axes, (title, what, label, span) in zip(fig.subplots(1, 3), panels, strict=True):
            for solver in solvers:
                of_it = np.sort(what[ran["solver"] == solver].dropna().to_numpy())
                if not len(of_it):
                    continue
                x = np.concatenate([[span[0]], of_it, [max(span[1], of_it[-1])]])
                y = np.concatenate([[0], np.arange(1, len(of_it) + 1), [len(of_it)]]) / instances
                own = ran.loc[ran["solver"] == solver, "library"].iloc[0] == "matchmark"
                axes.step(x, y, where="post", color=colours[solver], label=solver, ls="-" if own else "--", lw=2)
            axes.set(title=title, xlabel=label, ylim=(0, 1.02), xscale="log", xlim=span)
            axes.set_ylabel("share of the instances")
        fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        fig.suptitle("Quadratic assignment: performance profiles (ours solid)")
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 for what cannot be used, 130 when stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quadratic_study", description=__doc__)
    parser.add_argument("--qaplib", type=Path, metavar="DIR", help="a folder with QAPLIB's files NAME.dat and NAME.sln")
    parser.add_argument("--time-limit", type=float, default=2.0, metavar="S", help="of each run; default: 2 seconds")
    parser.add_argument(
        "--instances", nargs="+", default=[], metavar="NAME", help="plantedN, unrelatedN, QAPLIB's names"
    )
    parser.add_argument("--solvers", nargs="+", default=[*CONTENDERS], choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--name", default=NAME, help=f"of the files written; default: {NAME}")
    parser.add_argument("--quick", action="store_true", help="one instance, table in results/cache")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the cache")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: the results of this checkout")
    chosen = parser.parse_args(arguments)
    if not chosen.time_limit > 0:
        parser.error(f"--time-limit must be a number of seconds above 0, not {chosen.time_limit:g}")
    if chosen.threads < 1:
        parser.error(f"--threads must be at least 1, not {chosen.threads}")
    try:
        problems = instances(chosen.qaplib, chosen.instances or (["planted8"] if chosen.quick else []))
    except QaplibError as error:
        parser.error(str(error))
    open_results(chosen.results)
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    machine, kept, console = provenance(), Cache(chosen.results / "cache"), Console(stderr=True)
    rows: list[Row] = []
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("", total=len(problems) * len(chosen.solvers))
            for name, (problem, best) in problems.items():
                for solver in chosen.solvers:
                    progress.update(task, description=f"{name}, {solver}")
                    what = ("quadratic", name, [x.tolist() for x in problem], best)
                    how = (solver, chosen.time_limit, chosen.threads)
                    key = content_hash(*what, *how, {k: machine[k] for k in ("sources", "versions", "hardware")})
                    known = None if chosen.fresh else kept.read_json("benchmarks", key)
                    if known is None:
                        known = measure(name, problem, best, solver, chosen.time_limit)
                        kept.write_json("benchmarks", key, known)
                    rows.append(known)
                    progress.advance(task)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        return 130
    finally:
        torch.set_num_threads(threads)
    table, folder = frame(rows), chosen.results / ("cache/quick" if chosen.quick else "benchmarks")
    machine |= {"arguments": sys.argv[1:] if arguments is None else [*arguments]}
    files = {
        "csv": table.to_csv(index=False, lineterminator="\n", float_format="%.10g"),
        "md": markdown(table, chosen.time_limit, chosen.threads, machine["hardware"]["cpu"]),
        "json": json.dumps(machine, indent=1) + "\n",
        "png": figure(table),
    }
    for suffix, content in files.items():
        write_atomically(folder / f"{chosen.name}.{suffix}", content)
        print(folder / f"{chosen.name}.{suffix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
