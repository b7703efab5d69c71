"""The examples of CONTRIBUTING.md, followed to the letter: they are what they say, and they pass."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import test_contract
from conftest import make_problem

import solvers
from solvers import AssignmentProblem, Status, registry, solve

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^`([^`\n]+)`(?:, one line in `(\w+)`)?:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A named block: a whole file, or a line for the collection of that name in a file that is there."""

    file: str
    place: str
    text: str


BLOCKS = {found[1]: Block(found[1], found[2] or "", found[3]) for found in BLOCK.finditer(TEXT)}
PAPER = [block for name, block in BLOCKS.items() if name.startswith("reproductions/")]


@pytest.fixture
def forget_plugins():
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


@pytest.fixture
def greedy(tmp_path, monkeypatch):
    """The example's solver in a folder of the package, registered by the example's line."""
    file, line = BLOCKS["solvers/greedy.py"], BLOCKS["solvers/registry.py"]
    folder = tmp_path / "solvers"
    folder.mkdir()
    (folder / Path(file.file).name).write_text(file.text)
    monkeypatch.setattr(solvers, "__path__", [*solvers.__path__, str(folder)])
    for name, place in ast.literal_eval("{" + line.text + "}").items():
        monkeypatch.setitem(getattr(registry, line.place), name, place)
    yield "greedy"
    sys.modules.pop("solvers.greedy", None)


def contract_tests():
    """Those of a name and a type of problem, and those of a name."""
    for name, test in vars(test_contract).items():
        marks = {mark.name for mark in getattr(test, "pytestmark", [])}
        if name.startswith("test_") and "parametrize" in marks and "gpu" not in marks:
            arguments = list(inspect.signature(test).parameters)
            if arguments in (["name", "kind"], ["name"]):
                yield pytest.param(test, arguments, id=name)


@pytest.mark.parametrize(("test", "arguments"), list(contract_tests()))
def test_the_solver_keeps_the_contract(greedy, test, arguments):
    test(*[greedy, AssignmentProblem][: len(arguments)])


def test_the_solver_is_greedy_and_not_exact(greedy):
    found = solve(AssignmentProblem([[1.0, 2.0], [3.0, 9.0]]), greedy)
    assert (found.permutation.tolist(), found.value.item()) == ([0, 1], 10.0)  # 0 → 1 and 1 → 0 cost 5
    assert found.status is Status.CONVERGED
    problem = make_problem(AssignmentProblem, 3, n=6, m=4)
    late = solve(problem, greedy, time_limit=0.0)
    assert late.status is Status.TIME_LIMIT
    assert late.permutation.tolist() == [[0, 1, 2, 3, -1, -1]] * 3


def test_a_package_of_its_own_is_found(tmp_path, monkeypatch, forget_plugins):
    project = tomllib.loads(BLOCKS["pyproject.toml"].text)["project"]
    ((group, points),) = project["entry-points"].items()
    ((name, place),) = points.items()
    text = BLOCKS["solvers/greedy.py"].text.replace('name: ClassVar = "greedy"', f'name: ClassVar = "{name}"')
    (tmp_path / f"{place.partition(':')[0]}.py").write_text(text)
    installed = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (installed / "entry_points.txt").write_text(f"[{group}]\n{name} = {place}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert name in solvers.available_solvers(AssignmentProblem)
    assert solve(make_problem(AssignmentProblem, n=3), name).solver == name


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of both packages, edited as the example says."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "solvers").symlink_to(ROOT / "solvers")
    shutil.copytree(ROOT / "reproductions", folder / "reproductions", ignore=shutil.ignore_patterns("__pycache__"))
    for block in PAPER:
        path = folder / block.file
        if block.place:
            start = re.compile(rf"^{block.place}\b.*?= ?[({{]", re.MULTILINE)
            text, count = start.subn(lambda found, block=block: f"{found[0]}\n{block.text}", path.read_text())
            assert count == 1
        else:
            assert not path.exists()
            text = block.text
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_the_paper_is_reproduced_and_agrees(project, tmp_path):
    command = [sys.executable, "-m", "reproductions", "reproduce", "random_assignment", "--results", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 rows measured" in done.stdout
    table = pd.read_csv(tmp_path / "random_assignment" / "mean_cost.csv")
    assert table["verdict"].tolist() == ["agrees", "agrees"]
    assert table["published"].tolist() == [round(sum(k**-2 for k in range(1, n + 1)), 6) for n in (10, 50)]
    assert (table["measured"] - table["published"]).abs().max() < 0.02
    assert (tmp_path / "random_assignment" / "mean_cost.png").stat().st_size > 0
    made = (tmp_path / "random_assignment" / "mean_cost.md").read_text()
    shown = cells(TEXT)
    assert len(shown) == 2
    assert shown == cells(made)


def cells(text: str) -> list[list[str]]:
    """The rows "n = …" of a table in Markdown."""
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| n = ")]


@pytest.mark.parametrize("tool", [["check", "--ignore", "INP001"], ["format", "--check", "--diff"]], ids=lambda t: t[0])
def test_the_examples_follow_the_house_style(project, tmp_path, tool):
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("ruff is not installed")
    files = [project / block.file for block in PAPER if block.file.endswith(".py") and not block.place]
    solver = tmp_path / "greedy.py"
    solver.write_text(BLOCKS["solvers/greedy.py"].text)
    command = [ruff, *tool, "--config", str(ROOT / "pyproject.toml"), "--no-cache", *map(str, [solver, *files])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_make_targets_and_links_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in re.findall(r"(?:^|`)make ([a-z -]+)", TEXT, re.MULTILINE) for target in line.split()}
    assert named <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("http") or (ROOT / link).exists(), link
