"""RAM on the embedded scenes and on small real data: regions that are padding, what is trained, the tables."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import SHARED
from torch import nn

from reproductions.datasets.scenes import PADDING, scene_classes
from reproductions.experiment import Options, reproduce
from reproductions.multi_label.in_memory import Descent
from reproductions.multi_label.real_images import Coco256, Corel5k, TokenVectors, studies
from reproductions.ram import real_images
from reproductions.ram import scenes as embedded
from reproductions.ram.experiment import rows
from reproductions.ram.region_model import RegionModel
from reproductions.ram.settings import Matching, RamSettings

MATCHINGS = get_args(Matching)


def model_of(matching, **settings):
    torch.manual_seed(0)
    made = RamSettings(matching=matching, teacher=False, adapter=False, tau_local=0.01, **settings)
    return RegionModel(TokenVectors(20, 8), nn.Parameter(torch.randn(6, 8)), 4, made, 10.0).eval()


@pytest.mark.parametrize("matching", MATCHINGS)
def test_regions_that_are_padding_change_nothing(matching):
    model = model_of(matching)
    tokens = torch.tensor([[3, 5, 7, 11], [2, 9, 13, 17]])
    padded = torch.cat([tokens, torch.full((2, 3), PADDING)], 1)
    padded[1, 3] = PADDING
    scores, weights = model.scores(padded), model.weights(padded)
    torch.testing.assert_close(scores[:1], model.scores(tokens[:1]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores[1:], model.scores(tokens[1:, :3]), rtol=1e-4, atol=1e-6)
    assert weights[0, 4:].abs().max() == 0
    torch.testing.assert_close(weights[0, :4], model.weights(tokens[:1])[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 6))


def test_unseen_labels_play_no_part_in_training():
    model = model_of("kcot")
    tokens, targets = torch.tensor([[1, 2], [3, 4]]), torch.eye(2, 4)
    model.loss(tokens, targets).backward()
    assert model.text.grad is not None
    assert model.text.grad[:4].abs().min() > 0
    assert model.text.grad[4:].abs().max() == 0
    assert model.scores(tokens, slice(4, None)).shape == (2, 2)
    torch.testing.assert_close(model.scores(tokens).sum(1), torch.ones(2))


# ------------------------------------------------------------------------------------------------------------- scenes


def test_every_colour_and_every_digit_is_seen_and_some_pairs_are_not():
    names = scene_classes(True)
    assert sorted(embedded.ORDER) == list(range(40))
    seen = [names[c].split() for c in embedded.SEEN]
    assert len({colour for colour, _ in seen}) == 4
    assert len({digit for _, digit in seen}) == 10
    assert len(embedded.UNSEEN) == len({names[c].split()[1] for c in embedded.UNSEEN}) == 10
    t = embedded.text_vectors(0)
    torch.testing.assert_close(t.norm(dim=1), torch.ones(40))
    words = [set(names[c].split()) for c in embedded.ORDER]
    shared = torch.tensor([[len(a & b) for a in words] for b in words])
    torch.testing.assert_close(t @ t.T, shared / 2)


@pytest.fixture
def small(monkeypatch):
    """A tenth of everything, in this process."""
    monkeypatch.setattr(embedded, "COUNTS", {"train": 40, "test": 60})
    monkeypatch.setattr(embedded, "SEEDS", 2)
    monkeypatch.setattr(embedded, "WIDTH", 32)
    monkeypatch.setattr(embedded, "PRETRAINING", replace(embedded.PRETRAINING, epochs=1))
    monkeypatch.setattr(embedded, "TRAINING", replace(embedded.TRAINING, epochs=1))
    monkeypatch.setattr("reproductions.ram.experiment.prepare", lambda options, advance: None)
    embedded.scenes.cache_clear()
    yield
    embedded.scenes.cache_clear()


def test_tables_of_the_scenes(small, tmp_path, monkeypatch):
    options = Options(tmp_path)
    assert not embedded.scenes("train", 0).labels[:, embedded.UNSEEN].any()
    assert embedded.scenes("test", 0).labels[:, embedded.UNSEEN].any()
    chosen = ("pooling", "KCOT, teacher (RAM)")
    few = [r for r in rows(options) if r.row in chosen and r.settings.get("less", "pooling") == "pooling"]
    monkeypatch.setattr("reproductions.ram.experiment.rows", lambda options: few)
    monkeypatch.setattr("reproductions.ram.experiment.DRAWN", chosen)
    monkeypatch.setattr("reproductions.ram.experiment.DRAWN_SCENES", 1)
    outcome = reproduce("ram", options)
    measured = {(r.row.table, r.row.row, r.row.column): r.estimate for r in outcome.results if r.estimate}
    assert len(measured) == len(few) == 12
    gain = measured["scenes_gains", chosen[1], "ZSL mAP, over pooling"]
    mean = {name: measured["scenes", name, "ZSL mAP"].mean for name in chosen}
    assert gain.mean == pytest.approx(mean[chosen[1]] - mean["pooling"])
    assert measured["scenes", "pooling", "in the boxes"].mean == pytest.approx(8.5, abs=2)
    assert (tmp_path / "ram" / "scenes_weights.png").stat().st_size > 5_000
    assert reproduce("ram", options).reused == 12


# -------------------------------------------------------------------------------------------------------- real images


def test_a_folder_without_data_has_no_studies(tmp_path):
    assert studies(None) == studies(tmp_path) == ()


@pytest.fixture
def real():
    if not (SHARED / "data").is_dir():
        pytest.skip("the real data are not at hand")
    return studies(SHARED / "data")


def test_the_real_images(real, tmp_path, monkeypatch):
    coco, corel = real
    assert isinstance(coco, Coco256)
    assert isinstance(corel, Corel5k)
    assert coco.targets("test").shape == (128, 65)
    assert corel.targets("train").shape == (4500, 374)
    covered = coco.covered()
    assert covered is not None
    assert ((covered.amax(1) > 0).numpy() == (coco.targets("test") > 0)).all(), "every label has its boxes"
    monkeypatch.setattr(Coco256, "descent", Descent(epochs=8, batch=16, lr=2e-3))
    options = Options(tmp_path)
    found = real_images.outcome(coco, "attention", 0, options)
    labels = coco.targets("train")
    assert found.scores["ZSL"].shape == (128, 17)
    frequent = labels[:, : coco.seen].sum(0).argmax()
    there = coco.targets("test")[:, frequent] == 1
    of_frequent = found.scores["GZSL"][:, frequent].numpy()
    assert of_frequent[there].mean() > 1.5 * of_frequent[~there].mean(), "it has learned something"
    assert found.inside is not None
    again = real_images.outcome(coco, "attention", 0, options)
    assert np.array_equal(again.scores["ZSL"], found.scores["ZSL"])
