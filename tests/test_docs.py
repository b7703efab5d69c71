"""The documentation: the site renders without a warning, and the recipe for SLURM asks for what it says."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import refused

from docs import site

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "docs" / "slurm.md"


class Links(HTMLParser):
    """The files that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value and not re.match(r"[a-z]+:|#", value):
                self.found.add(value.partition("#")[0])


def broken(folder: Path) -> set[str]:
    missing = set()
    for page in site.PAGES.values():
        links = Links()
        links.feed((folder / page).read_text())
        assert links.found
        missing |= {link for link in links.found if not (folder / link).exists()}
    return missing


def test_the_pages_and_a_module_render(tmp_path):
    pytest.importorskip("pdoc")
    site.build(tmp_path, ["solvers.problems"])
    page = (tmp_path / "solvers" / "problems.html").read_text()
    assert "⟨A P Bᵀ, P⟩" in page, "mathematics stays as it is written"
    index = (tmp_path / "index.html").read_text()
    assert 'href="contributing.html"' in index
    assert 'href="slurm.html"' in index
    assert 'href="solvers/problems.html"' in index
    assert broken(tmp_path) == set()


def test_a_warning_ends_it(tmp_path, monkeypatch):
    pytest.importorskip("pdoc")
    (tmp_path / "lacking.py").write_text('"""A module."""\n\n\ndef f(x: "NoSuchType") -> None:\n    """Nothing."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserWarning, match="NoSuchType"):
        site.build(tmp_path / "site", ["lacking"])
    sys.modules.pop("lacking", None)


def test_without_pdoc_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    refused(lambda: site.build(tmp_path), "pip install 'matchmark[docs]'")


@pytest.mark.slow
def test_the_whole_site_renders(tmp_path):
    pytest.importorskip("pdoc")
    site.build(tmp_path)
    for name in ("solvers/sinkhorn", "solvers/kernels/sinkhorn", "reproductions/deepemd/method"):
        assert (tmp_path / f"{name}.html").exists()
    assert broken(tmp_path) == set()


@pytest.fixture
def recipe():
    """What the recipe's script defines, as a program that imports it sees it."""
    pytest.importorskip("dask_jobqueue")
    (script,) = re.findall(r"^`sweep\.py`:\n\n```python\n(.*?)^```", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    names = {"__name__": "sweep"}
    exec(compile(script, "sweep.py", "exec"), names)
    return names


def test_the_slurm_recipe_asks_for_one_worker_of_one_thread(recipe):
    with recipe["cluster"]() as cluster:
        script, address = cluster.job_script(), cluster.scheduler_address
    directives = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert set(directives) == {
        "-J matchmark",
        "-e slurm-logs/matchmark-%J.err",
        "-o slurm-logs/matchmark-%J.out",
        "-n 1",
        "--cpus-per-task=1",
        "--mem=8G",
        "-t 08:00:00",
    }
    command = script.splitlines()[-1]
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker {address} ")
    assert "--nthreads 1 " in command
    assert "--nworkers" not in command, "one process is the worker's default"
    assert "export NUMBA_NUM_THREADS=1" in script
    assert address.startswith("tcp://"), "what --scheduler takes"


def test_the_recipe_runs_the_command_on_its_cluster(recipe, monkeypatch):
    commands, script = [], RECIPE.read_text()
    (script,) = re.findall(r"^`sweep\.py`:\n\n```python\n(.*?)^```", script, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr("dask_jobqueue.SLURMCluster.adapt", lambda cluster, **limits: commands.append(limits))
    monkeypatch.setattr("subprocess.call", lambda command: commands.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "scot", "--results", "somewhere"])
    with pytest.raises(SystemExit) as ended:
        exec(compile(script, "sweep.py", "exec"), {"__name__": "__main__"})
    assert ended.value.code == 0
    limits, command = commands
    assert limits == {"minimum_jobs": 0, "maximum_jobs": recipe["WORKERS"]}
    assert command[1:7] == ["-m", "reproductions", "reproduce", "scot", "--results", "somewhere"]
    assert command[-2] == "--scheduler"
    assert command[-1].startswith("tcp://")


def test_links_of_the_recipe_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", RECIPE.read_text()):
        assert link.startswith("http") or (RECIPE.parent / link).exists(), link
