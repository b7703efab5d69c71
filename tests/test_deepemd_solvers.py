"""DeepEMD's solver table: other people's solvers give the same logits, and the error of a gradient is what it says."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from reproductions.deepemd import experiment, solver_table
from reproductions.deepemd.engines import ENGINES, Engine
from reproductions.deepemd.episodes import Episode
from reproductions.deepemd.figures import draw_accuracy_against_time, draw_flows
from reproductions.experiment import Options


@pytest.fixture
def drawn():
    """Nodes of 7 images, and an episode of 2 classes of them."""
    features = torch.randn(7, 6, 8, generator=torch.Generator().manual_seed(0)).abs()
    return features, Episode(torch.tensor([[0], [1]]), torch.arange(2, 7), torch.tensor([0, 1, 0, 1, 0]))


@pytest.mark.parametrize("name", [n for n, engine in ENGINES.items() if n != "EMD, ours" and "Sinkhorn" not in n])
def test_other_solvers_give_the_logits_of_ours(drawn, name):
    if ENGINES[name].missing:
        pytest.skip(ENGINES[name].missing)
    ours, theirs = (solver_table.episode_logits(ENGINES[n], *drawn) for n in ("EMD, ours", name))
    torch.testing.assert_close(theirs, ours, rtol=2e-3, atol=2e-3)


def test_sinkhorn_comes_closer_as_its_regularisation_falls(drawn):
    ours = solver_table.episode_logits(ENGINES["EMD, ours"], *drawn)
    names = [n for n in ENGINES if n.startswith("Sinkhorn")]
    errors = [(solver_table.episode_logits(ENGINES[n], *drawn) - ours).abs().max().item() for n in names]
    assert errors == sorted(errors)


def test_the_error_of_a_gradient(drawn):
    """None for the exact ones, a known one for a gradient that is twice the right one."""
    features, episode = drawn
    reference = solver_table.derivatives(features, [episode])
    assert reference.shape == (1, solver_table.DIRECTIONS)

    def error(engine):
        return solver_table.gradient_errors(engine, features, [episode], reference, lambda fraction: None)[0]

    assert error(ENGINES["EMD, ours"]) < 0.01
    assert error(ENGINES["EMD, POT"]) < 0.01
    exact = ENGINES["EMD, ours"].logits

    def doubled(query, prototype):
        x = exact(query, prototype)
        return x.detach() + 2 * (x - x.detach())

    assert error(replace(ENGINES["EMD, ours"], logits=doubled)) == pytest.approx(100, abs=0.1)


def test_what_is_not_installed_is_named():
    lacking = Engine("x", {}, torch.add, "no_such_module", "pip install it")
    assert lacking.missing == "needs no_such_module: pip install it"


def test_a_gain_is_the_difference_in_the_same_episodes(monkeypatch):
    given = {"EMD, cross-reference weights": torch.tensor([70.0, 80.0]), "Sinkhorn": torch.tensor([60.0, 90.0])}
    monkeypatch.setattr(experiment, "_accuracies", lambda study, task, method, *_: given[method])
    options = Options(Path("unused"))
    row = next(r for r in experiment.rows(options) if r.row == "EMD less Sinkhorn")
    assert row.table == "few_shot_digits_gains"
    assert experiment.measure(row, options, lambda fraction: None) == [10.0, -10.0]


def test_pictures():
    rng = np.random.default_rng(0)
    flow = rng.random((4, 4))
    picture = draw_flows([("a pair", rng.random((8, 8)), rng.random((8, 8)), flow)] * 2, side=2)
    assert Image.open(io.BytesIO(picture)).height > 400
    table = pd.DataFrame(
        [
            {"row": r, "column": c, "measured": k + 1.0, "ci_low": k + 0.5, "ci_high": k + 1.5, "n": 5}
            for k, r in enumerate(("EMD, ours", "Sinkhorn, ε = 0.1"))
            for c in ("5-way 1-shot", "one episode")
        ]
    )
    picture = draw_accuracy_against_time(table, "5-way 1-shot", "one episode")
    assert Image.open(io.BytesIO(picture)).width > 400
