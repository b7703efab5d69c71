"""DeepEMD on the paper's data sets: rows for what a folder holds, and their measurement."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image

from reproductions.claims import load_paper
from reproductions.datasets import few_shot
from reproductions.deepemd import encoders, evaluation, experiment, official
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import pretrained_model, save_encoder, trained_model
from reproductions.deepemd.loading import draw_episodes
from reproductions.deepemd.meta import MetaTraining, meta_train
from reproductions.deepemd.pretrain import FilePretraining
from reproductions.deepemd.structured_layer import StructuredLayer
from reproductions.experiment import Options, _not_run
from reproductions.machine import Machine
from reproductions.statistics import Estimate, verdict

WIDTHS = (4, 4, 4, 8)


@pytest.fixture
def options(tmp_path, monkeypatch):
    """miniImageNet of six test classes, two trained encoders of few channels, and short evaluations."""
    benchmark = few_shot.BENCHMARKS["mini_imagenet"]
    monkeypatch.setitem(
        few_shot.BENCHMARKS, "mini_imagenet", benchmark.__class__(**{**vars(benchmark), "classes": (6, 6, 6)})
    )
    monkeypatch.setattr(official, "EPISODES", {1: 2, 5: 1})
    monkeypatch.setattr(official, "QUERIES", 1)
    monkeypatch.setattr(official, "ResNet12", partial(ResNet12, WIDTHS))
    monkeypatch.setattr(encoders, "WORKERS", 0)
    small = {"epochs": 1, "way": 2, "queries": 1, "validation": 1}
    monkeypatch.setattr(encoders, "PRETRAINING", FilePretraining(widths=WIDTHS, batch=18, **small))
    monkeypatch.setattr(encoders, "META", MetaTraining(steps=1, **small))
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
        save_encoder(trained_model(tmp_path, "mini_imagenet", variant), ResNet12(WIDTHS), "meta")
    official._test_images.cache_clear()
    return Options(tmp_path / "results", tmp_path)


def cell(options, table, row, column):
    return next(r for r in official.rows(options) if (r.table, r.row, r.column) == (table, row, column))


def test_a_trained_encoder_is_tested_beside_the_published_number(options):
    found = [r for r in experiment.rows(options) if r.tier == "paper"]
    main = [r for r in found if r.table == "mini_imagenet"]
    assert {r.row for r in main} == {"DeepEMD (5x5)", "DeepEMD-FCN", "DeepEMD-Grid"}
    for row in found:
        assert row.claim == load_paper("deepemd").claim(row.table, row.row, row.column)
        assert row.claim.data == row.data, "what is measured on the paper's data may agree with it"
        assert ("layer_lr" in row.settings) == (row.settings["shot"] == 5)
    for row in [r for r in main if r.row != "DeepEMD-Grid"]:
        told: list[float] = []
        accuracies = experiment.measure(row, options, told.append)
        assert accuracies == [100.0] * row.settings["episodes"], "every image of a class is the same"
        assert told[-1] == 1


def test_the_ablations_have_a_row_for_every_published_one_that_an_encoder_allows(options):
    for table in ("embeddings", "metric_comparison"):
        published = {c.key for c in load_paper("deepemd").claims if c.table == table}
        measured = {r.claim.key for r in official.rows(options) if r.table == table}
        assert {key[1].partition(" ")[0] for key in published - measured} <= {"Sampling", "FC,"}
    save_encoder(trained_model(options.data, "mini_imagenet", "sampling"), ResNet12(WIDTHS), "meta")
    sampled = [r.row for r in official.rows(options) if r.table == "embeddings" and "Sampling" in r.row]
    assert sampled == 2 * ["Sampling 9", "Sampling 16", "Sampling 25"]


@pytest.mark.parametrize("metric", evaluation.LOGITS)
def test_every_metric_tells_classes_of_one_image_apart(options, metric):
    name = {m: row for row, m in official.COMPARED.items()}[metric]
    row = cell(options, "metric_comparison", name, "5-way 1-shot")
    accuracies = official.measure(row, options, lambda fraction: None)
    # cells of an encoder that learned nothing are all alike to a pooled prototype
    assert accuracies == ([20.0, 20.0] if metric == "prediction fusion" else [100.0, 100.0])
    said, why = verdict(row.claim, Estimate(60.0, 59.9, 60.1, 2), row.data, differs=row.differs)
    assert (said == "differs") == (metric == "EMD"), "another metric's encoder was trained otherwise"
    assert metric == "EMD" or "DeepEMD's encoder" in why


def test_what_two_tables_show_is_measured_once(options, monkeypatch):
    main = cell(options, "mini_imagenet", "DeepEMD (5x5)", "5-way 1-shot")
    accuracies = official.measure(main, options, lambda fraction: None)
    monkeypatch.setattr(official, "_accuracies", None)
    for table, name in (("embeddings", "FCN 5x5"), ("metric_comparison", "DeepEMD-FCN (5x5), local, EMD")):
        assert (
            official.measure(cell(options, table, name, "5-way 1-shot"), options, lambda fraction: None) == accuracies
        )


@pytest.mark.parametrize("name", ["FCN pyramid (5,2,1)", "Grid pyramid (3,2)", "Sampling 9"])
def test_nodes_that_are_kept_are_those_of_the_episodes_own_patches(options, monkeypatch, name):
    torch.manual_seed(0)
    encoder, files = ResNet12(WIDTHS).eval(), official._test_images(options, "mini_imagenet")
    _, embedding = official.EMBEDDINGS[name]
    drawn = draw_episodes(files, 2, 1, 2, seed=0)
    nodes = evaluation.Nodes(encoder, embedding, files, Machine(), options.cache, "weights")
    kept = list(nodes.of(drawn, seed=0))
    monkeypatch.setattr(evaluation, "KEPT", 0)
    monkeypatch.setattr(evaluation, "AT_ONCE", 5)
    for one, other in zip(kept, nodes.of(drawn, seed=0), strict=True):
        torch.testing.assert_close(one, other)
    assert len(list((options.cache.folder / "nodes").glob("*"))) == {"FCN": 1, "Gri": 2, "Sam": 0}.get(name[:3])


def test_images_shrunk_in_advance_are_not_compared(options):
    for path in (options.data / "miniimagenet" / "images").iterdir():
        Image.open(path).resize((84, 84)).save(path)
    assert all("at most 84 px" in r.differs or r.differs == official.ONE_ENCODER for r in official.rows(options))


def test_without_data_or_encoder_there_is_nothing_to_test(options):
    assert official.rows(Options(options.results)) == []
    for variant in ("fcn", "grid"):
        trained_model(options.data, "mini_imagenet", variant).unlink()
    assert official.rows(options) == []
    path = trained_model(options.results / "cache" / "deepemd", "mini_imagenet", "sampling")
    save_encoder(path, ResNet12(WIDTHS), "meta")
    assert {r.row for r in official.rows(options) if r.table == "mini_imagenet"} == {"DeepEMD-Sampling"}


def test_missing_encoders_are_trained_once(options, monkeypatch):
    """Those that are there already, in the folder or trained here, are left alone."""
    here = options.results / "cache" / "deepemd"
    own, missing = (trained_model(options.data, "mini_imagenet", v) for v in ("fcn", "grid"))
    missing.unlink()
    before, told = own.read_bytes(), []
    stages = []
    monkeypatch.setattr(encoders, "meta_train", lambda *a: stages.append(a[-3].parent.name) or meta_train(*a))
    experiment.train(options, lambda what, fraction: told.append(what))
    assert stages == ["grid", "sampling"]
    assert own.read_bytes() == before
    assert not trained_model(here, "mini_imagenet", "fcn").exists()
    assert pretrained_model(here, "mini_imagenet").is_file()
    assert any("pre-training on miniImageNet" in t for t in told)
    assert any("meta-training on miniImageNet, grid" in t for t in told)
    assert {r.row for r in official.rows(options) if r.table == "mini_imagenet"} == set(official.MAIN)
    monkeypatch.setattr(encoders, "pretrain", None)
    trained_model(here, "mini_imagenet", "sampling").unlink()
    experiment.train(options, lambda what, fraction: None)
    assert stages == ["grid", "sampling", "sampling"]
    experiment.train(options, lambda what, fraction: None)
    assert len(stages) == 3


def test_training_needs_a_data_set_of_the_paper(options, tmp_path):
    for data in (None, tmp_path / "results"):
        refused(
            lambda data=data: encoders.train(Options(tmp_path, data), print), "--train needs --data DIR", "cifar_fs"
        )


def test_numbers_that_were_not_run_say_what_it_takes(options):
    paper = load_paper("deepemd")
    reasons = {r.row.claim.key: r.reason for r in _not_run(paper, official.rows(options))}
    assert reasons["mini_imagenet", "ProtoNet", "5-way 1-shot"] == "another paper's method, quoted for comparison"
    assert "not implemented" in reasons["metric_comparison", "FC, global, dot", "5-way 1-shot"]
    assert reasons["cub", "DeepEMD (5x5)", "5-way 1-shot"].endswith("matchmark reproduce deepemd --data DIR --train")
