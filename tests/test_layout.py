"""The house rules that a test can hold: where things are imported from, and what the wheel holds."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import reproductions
import solvers

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for package in ("solvers", "reproductions") for p in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_packages_under_test_are_those_of_this_checkout():
    assert Path(solvers.__file__).parent == ROOT / "solvers"
    assert Path(reproductions.__file__).parent == ROOT / "reproductions"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_data_flows_one_way(path):
    found, place = imports(path), path.relative_to(ROOT)
    project = {m for m in found if m.split(".")[0] in ("solvers", "reproductions", "benchmarks", "tests")}
    if place.parts[0] == "solvers":
        assert not {m for m in project if not m.startswith("solvers")}
    if place.parts[:2] == ("solvers", "kernels"):
        assert not {m for m in project if not m.startswith("solvers.kernels")}, "kernels import kernels alone"
    if place == Path("solvers/problems.py"):
        assert {m for m in project if not m.startswith("solvers.kernels")} <= {"solvers", "solvers.validation"}
    papers = {p for p in reproductions.PAPERS if any(m.startswith(f"reproductions.{p}") for m in project)}
    if place.parts[0] == "reproductions" and len(place.parts) > 2 and place.parts[1] in reproductions.PAPERS:
        assert papers <= {place.parts[1]}, "no paper imports another"
    assert len(path.read_text().splitlines()) <= 520


def test_the_project_is_one_distribution_of_two_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["solvers*", "reproductions*"]
    names = {re.split(r"[<>=\[;]", d)[0].lower() for d in project["project"]["dependencies"]}
    assert {"torch", "torchvision", "timm", "numba", "pot", "gurobipy", "lapjv"} <= names
    assert "pylibmgm" not in names, "GPL: an extra, never a default"
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pins, "every dependency is pinned for the Makefile"


def test_the_readme_commands_exist():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    assert {"make reproduce", "make test"} <= set(re.findall(r"make [a-z-]+", text))
    for name in solvers.available_solvers():
        assert f"`{name}`" in text
    for name in reproductions.PAPERS:
        assert name in text.lower()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
