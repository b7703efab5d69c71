"""A long run shows where it is, on a terminal and in a log, and never falls silent."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from reproductions import cli, progress


@pytest.fixture
def shown(monkeypatch):
    """What the command shows of a run that measures two rows and then is long at one of them."""

    def run(terminal: bool) -> str:
        def reproduce(paper, options, advance):
            advance("row 1 of 2: fast", 1.0)
            advance("row 2 of 2: [slow]", 0.25)
            time.sleep(0.5)
            return "outcome"

        screen = io.StringIO()
        monkeypatch.setattr(progress, "PERIOD", 0.1)
        monkeypatch.setattr(cli, "err", Console(file=screen, force_terminal=terminal, width=200))
        monkeypatch.setattr("reproductions.console.err", cli.err)
        monkeypatch.setattr(cli, "reproduce", reproduce)
        assert cli._reproduce_with_progress("paper", None) == "outcome"
        return screen.getvalue()

    return run


def test_a_log_gets_a_line_now_and_then(shown):
    lines = shown(terminal=False).splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("paper: row 2 of 2: [slow], 25%, ") for line in lines)
    assert all(line.endswith(" s") for line in lines)


def test_a_terminal_gets_a_bar_that_moves(shown):
    text = shown(terminal=True)
    assert "paper: row 2 of 2: [slow]" in text
    assert "25%" in text
    assert text.count("\r") > 3, "it is drawn again while the row is measured"


def test_the_lines_end_with_the_run_that_fails():
    screen = io.StringIO()
    with pytest.raises(ValueError, match="broken"), progress.Lines(Console(file=screen), "paper") as lines:
        raise ValueError("broken")
    assert not lines._writer.is_alive()
    assert screen.getvalue() == ""
