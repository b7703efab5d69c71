"""DeepEMD on the paper's data sets: rows for what a folder holds, and their measurement."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from reproductions.claims import load_paper
from reproductions.datasets import few_shot
from reproductions.deepemd import experiment, official
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import save_encoder, trained_model
from reproductions.deepemd.structured_layer import StructuredLayer
from reproductions.experiment import Options


@pytest.fixture
def options(tmp_path, monkeypatch):
    """miniImageNet of six test classes, two trained encoders of few channels, and short evaluations."""
    benchmark = few_shot.BENCHMARKS["mini_imagenet"]
    monkeypatch.setitem(
        few_shot.BENCHMARKS, "mini_imagenet", benchmark.__class__(**{**vars(benchmark), "classes": (6, 6, 6)})
    )
    monkeypatch.setattr(official, "EPISODES", {1: 2, 5: 1})
    monkeypatch.setattr(official, "QUERIES", 1)
    monkeypatch.setattr(official, "ResNet12", partial(ResNet12, (4, 4, 4, 8)))
    layer = partial(StructuredLayer, lr=1e-3, passes=5)  # steps of 100 are for features of 640 channels
    monkeypatch.setattr(official, "StructuredLayer", layer)
    folder, lines = tmp_path / "miniimagenet", ["filename,label"]
    (folder / "images").mkdir(parents=True)
    (folder / "split").mkdir()
    for k in range(6):
        for i in range(6):
            pixels = np.random.default_rng(k).integers(0, 256, (100, 120, 3), dtype=np.uint8)  # a class has one image
            Image.fromarray(pixels).save(folder / "images" / f"{k}{i}.jpg")
            lines.append(f"{k}{i}.jpg,n{k:08d}")
    for split in few_shot.SPLITS:
        (folder / "split" / f"{split}.csv").write_text("\n".join(lines))
    torch.manual_seed(0)
    for variant in ("fcn", "grid"):
        save_encoder(trained_model(tmp_path, "mini_imagenet", variant), ResNet12((4, 4, 4, 8)), "meta")
    official._test_images.cache_clear()
    return Options(tmp_path / "results", tmp_path)


def test_a_trained_encoder_is_tested_beside_the_published_number(options):
    found = [r for r in experiment.rows(options) if r.tier == "paper"]
    assert {r.row for r in found} == {"DeepEMD (5x5)", "DeepEMD-FCN", "DeepEMD-Grid"}
    for row in found:
        assert row.claim == load_paper("deepemd").claim("mini_imagenet", row.row, row.column)
        assert row.claim.data == row.data, "what is measured on the paper's data may agree with it"
        assert ("layer_lr" in row.settings) == (row.settings["shot"] == 5)
    for name in ("DeepEMD-FCN", "DeepEMD (5x5)"):
        for row in [r for r in found if r.row == name]:
            told: list[float] = []
            accuracies = experiment.measure(row, options, told.append)
            assert accuracies == [100.0] * row.settings["episodes"], "every image of a class is the same"
            assert told[-1] == 1


def test_patches_of_a_grid_are_nodes(options):
    row = next(r for r in official.rows(options) if r.row == "DeepEMD-Grid" and r.settings["shot"] == 1)
    assert official.measure(row, options, lambda fraction: None) == [100.0, 100.0]


def test_without_data_or_encoder_there_is_nothing_to_test(options):
    assert official.rows(Options(options.results)) == []
    for variant in ("fcn", "grid"):
        trained_model(options.data, "mini_imagenet", variant).unlink()
    assert official.rows(options) == []
    path = trained_model(options.results / "cache" / "deepemd", "mini_imagenet", "sampling")
    save_encoder(path, ResNet12((4, 4, 4, 8)), "meta")
    assert {r.row for r in official.rows(options)} == {"DeepEMD-Sampling"}
