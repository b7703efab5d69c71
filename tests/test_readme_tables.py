"""The tables of README.md are those that the code makes, and say nothing of what is not there."""

from __future__ import annotations

import re

import pytest

from docs import readme_tables
from docs.readme_tables import README, WORDS, written
from reproductions import PAPERS
from reproductions.datasets.catalogue import KNOWN
from solvers.registry import BUILTIN, solver_class


def test_the_tables_are_up_to_date():
    text = README.read_text()
    assert text == written(text), "run: make readme"


def test_a_table_that_fell_behind_is_written_again(monkeypatch):
    text = README.read_text()
    behind = text.replace("| [`emd`]", "| [`edm`]")
    assert behind != text
    monkeypatch.setattr(readme_tables, "paper_table", lambda: "papers\n")
    again = written(behind)
    assert again.count("| [`emd`]") == 1
    assert "<!-- papers -->\npapers\n<!-- /papers -->" in again


def test_a_place_that_is_gone_is_told(monkeypatch):
    monkeypatch.setattr(readme_tables, "paper_table", lambda: "")
    with pytest.raises(ValueError, match="<!-- papers -->"):
        written(README.read_text().replace("<!-- /papers -->", ""))


def test_the_words_are_of_what_there_is():
    titles = {known.title for known in KNOWN if known.tier != "embedded"}
    used = {
        title
        for words in WORDS["papers"].values()
        for key in ("data", "stand_in", "unused")
        for title in words.get(key, ())
    }
    assert set(WORDS["papers"]) == set(PAPERS)
    assert used | set(WORDS["sites"]) <= titles
    assert set(WORDS["solvers"]) | set(WORDS["gradients"]) | set(WORDS["after"]) <= set(BUILTIN)


def test_the_short_references_are_those_of_the_classes():
    for name, after in WORDS["after"].items():
        words = set(re.findall(r"\w+", after))
        assert words <= set(re.findall(r"\w+", solver_class(name).reference)), name
