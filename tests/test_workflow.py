"""The CI workflow: what it runs exists, it may read alone, and nothing in it waits for ever."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import reproductions
from reproductions.cli import app

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
ROOT = Path(reproductions.__file__).parents[1]
ASV = {"machine", "check", "continuous", "publish"}


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def commands(workflow: dict[Any, Any]) -> list[list[str]]:
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    return [shlex.split(line) for text in lines for line in text.splitlines()]


def test_every_command_exists_with_its_options(workflow):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {".venv/.installed-dev"}
    known = get_command(app).commands
    found = commands(workflow)
    assert {"lint", "test", "reproduce"} <= {words[1] for words in found if words[0] == "make"}
    for words in found:
        program, name, *arguments = words
        if program == "make":
            assert {name, *arguments} <= targets
        elif program == ".venv/bin/asv":
            assert name in ASV
        else:
            assert program == ".venv/bin/matchmark"
            options = {option for parameter in known[name].params for option in parameter.opts}
            assert {a for a in arguments if a.startswith("--")} <= options
    assert ["--factor", "1.5"] == next(w[2:4] for w in found if w[:2] == [".venv/bin/asv", "continuous"])


def test_every_command_of_asv_is_one_of_its_own():
    pytest.importorskip("asv", reason="asv is an extra: pip install 'matchmark[bench]'")
    from asv.commands import make_argparser

    _, commands_of_asv = make_argparser()
    assert set(commands_of_asv.choices) >= ASV


def test_the_workflow_reads_alone_and_ends(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"]
    assert "secrets" not in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert set(workflow[True]) == {"push", "pull_request", "schedule"}, "YAML 1.1 reads `on` as true"
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 90
        assert "permissions" not in job
        checkout = next(step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout"))
        assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}, "asv needs the commits"
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert "${{" not in step.get("run", ""), "what others name goes through the environment"
