"""The tables of blind matching: every row can be measured, on small data, and says what it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from reproductions import UserError
from reproductions.blind_match import (
    ablation_rows,
    cifar10,
    colours,
    experiment,
    official,
    official_figures,
    sides,
    tiny_imagenet,
)
from reproductions.blind_match.contenders import CONTENDERS, Match
from reproductions.blind_match.instances import Instance
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.outcomes import answered, summarised
from reproductions.blind_match.sources import Embedded
from reproductions.datasets.class_vectors import CIFAR10, HUMAN, PLACES, load_class_vectors, load_human_answers
from reproductions.experiment import NotMeasured, Options
from reproductions.metrics import METRICS


@pytest.fixture
def folder(tmp_path):
    """Stored vectors of ten and of twelve classes whose two sides are rotations of each other, but for noise."""
    random = np.random.default_rng(0)

    def store(place, classes, images, key):
        z = random.normal(size=(classes, 8))
        labels = np.repeat(np.arange(classes), images)
        features = z[labels] + 0.1 * random.normal(size=(len(labels), 8))
        text = z @ np.linalg.qr(random.normal(size=(8, 8)))[0]
        names = np.array([f"class {k}" for k in range(classes)])
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        np.savez(path, feat=features.astype(np.float16), label=labels, minilm=text.astype(np.float32), **{key: names})

    store(PLACES["CIFAR-10"], 10, 30, "classes")
    store(PLACES["Tiny-ImageNet"], 12, 4, "name")
    confused = 0.1 * random.dirichlet(np.ones(10), 10)
    answers = (0.9 * np.eye(10) + confused)[np.arange(10_000) % 10]
    (tmp_path / HUMAN).parent.mkdir()
    np.save(tmp_path / HUMAN, answers)
    sides.stored_pairs.cache_clear()
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """A few seeds, contenders, sizes and tenths of seconds."""
    proofs = {"1 min": (60.0, (6,))}
    few = {name: CONTENDERS[name] for name in ("Random", "LocalCKA", "OT", "Gurobi", "FHG", "branch and bound")}
    for module, names in {
        cifar10: {"SEEDS": 2, "CONTENDERS": few, "CLASSIFYING": ("Random", "branch and bound")},
        tiny_imagenet: {
            "LIMIT": 0.1,
            "SUBSETS": 2,
            "SUBSETS_LIMIT": 0.2,
            "CONTROLS": 2,
            "PROOFS": proofs,
        },
        colours: {"SIZES": (5,), "CONTROL_SIZES": (5,), "LIMIT": 0.2, "CONTROL_LIMIT": 0.2, "PERMUTATIONS": 2},
    }.items():
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(tiny_imagenet, "SIZES", {"tiny_imagenet_100": (5,), "tiny_imagenet_200": (6,)})


def measured(rows, options):
    return {(r.table, r.row, r.column): experiment.measure(r, options, lambda f: None) for r in rows}


def test_rows_are_unique_and_their_metrics_known(folder):
    rows = experiment.rows(Options(folder / "results", folder))
    keys = [(r.table, r.row, r.column, r.data) for r in rows]
    assert len(keys) == len(set(keys))
    assert {r.metric for r in rows} <= set(METRICS)
    tiers = {r.tier for r in experiment.rows(Options(folder / "results"))}
    assert tiers == {"embedded"}
    waiting = [r for r in rows if r.missing and "--full" in r.missing]
    assert waiting
    assert not [r for r in experiment.rows(Options(folder / "results", folder, full=True)) if "--full" in r.missing]


def test_stored_vectors_are_matched_and_classified(folder, small):
    options = Options(folder / "results", folder)
    rows = [r for r in cifar10.rows(options) if not r.missing and r.row != "Gurobi"]
    found = measured(rows, options)
    exact = ("cifar10_ten_classes", "MobileNetV2 ↔ MiniLM, GW", "accuracy")
    assert found[exact].mean == 100  # a rotation
    assert found[(*exact[:2], "proven")].mean == 100
    solvers = "cifar10_solvers_network_language"
    assert found[solvers, "branch and bound", "global optimum"].mean == 100
    assert found[solvers, "Random", "cost"].mean > found[solvers, "branch and bound", "cost"].mean
    classified = found["cifar10_classification", "best assignment", "classification accuracy"]
    assert all(best > 95 for best in classified)  # its clusters are far apart
    images = found["cifar10_classification", "branch and bound", "classification accuracy"]
    assert all(x <= best for x, best in zip(images, classified, strict=True))


def test_larger_problems_stand_in_a_table_a_metric(folder, small):
    options = Options(folder / "results", folder)
    rows = [r for r in tiny_imagenet.rows(options) if not r.missing and r.row.partition(",")[0] != "pylibmgm"]
    assert all(tiny_imagenet._contender(r).solver == r.solver for r in rows)
    found = measured(rows, options)
    assert found["tiny_imagenet_100_accuracy", "branch and bound", "N = 5"].mean == 100
    assert found["tiny_imagenet_100_proofs", "N = 6, 1 min", "proven"].mean == 100
    assert found["tiny_imagenet_200_bound", "FHG", "N = 6"].mean <= found[
        "tiny_imagenet_200_cost", "branch and bound", "N = 6"
    ].mean + 1e-9  # fmt: skip
    assert found["tiny_imagenet_100_subsets", "N = 5", "accuracy"].n == 10
    assert not [r for r in rows if r.row == "FAQ" and r.table.endswith("_bound")]


def test_too_large_for_their_memory_is_a_reason(folder, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "LARGEST", {"MPOpt": 15})
    rows = tiny_imagenet.rows(Options(folder / "results", folder))
    too_large = [r for r in rows if r.row == "MPOpt" and r.column == "N = 20"]
    assert too_large
    assert all("n > 15" in r.missing for r in too_large)


def test_colours_and_their_pictures(small, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "DRAWN_SIZES", (5,))
    options = Options(tmp_path)
    found = measured(colours.rows(), options)
    assert found["colours", "N = 5", "proven"].mean == 100
    assert found["colours", "N = 5, names permuted", "accuracy"].n == 15
    curve = [found["colours_shuffled", "CKA", f"{level:.1f}"].mean for level in colours.LEVELS]
    assert curve[0] > curve[5] > curve[-1]
    for name, png in experiment.pictures(options).items():
        assert png.startswith(b"\x89PNG"), name


def test_the_ablation_runs_once(tmp_path, monkeypatch):
    lengths = ablation_rows.Length(6, "", 0.2, (0.1,)), ablation_rows.Length(6, "_published_limit", 5.0, (1.0,), "long")
    monkeypatch.setattr(ablation_rows, "LENGTHS", lengths)
    monkeypatch.setattr(ablation_rows, "SEEDS", 2)
    options = Options(tmp_path)
    rows = ablation_rows.rows(options)
    assert {r.table for r in rows if r.missing} == {"hahn_grant_6_published_limit"}
    found = measured([r for r in rows if not r.missing], options)
    for name in ("Hahn–Grant", "+ primal heuristic", "ours, 0.1 s"):
        of = {column: found["hahn_grant_6", name, column].mean for column in ("cost", "bound", "gap")}
        assert of["bound"] <= of["cost"] + 1e-9
        assert of["gap"] >= -1e-6
    monkeypatch.setattr(ablation_rows, "run_published", None)
    assert measured([r for r in rows if not r.missing], options) == found  # from the cache


def test_a_match_is_made_once(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    instance, gw = Instance(*torch.randn(2, 6, 4, generator=g, dtype=torch.float64)), Distortion("gw")
    of = (instance, CONTENDERS["branch and bound"], gw, 1.0, 0, Options(tmp_path))
    first = answered(*of)
    monkeypatch.setattr("reproductions.blind_match.contenders.make_solver", None)
    assert answered(*of) == first


def test_numbers_of_several_matches():
    right, wrong = (
        Match(p, cost, bound, proven, 2.0)
        for p, cost, bound, proven in (((0, 1, 2), 1.0, 1.0, True), ((1, 0, 2), 2.0, 1.0, False))
    )
    assert summarised("matching_accuracy", [right, wrong]).mean == pytest.approx(100 * 4 / 6)
    assert summarised("matching_accuracy", [right, wrong]).n == 6
    assert summarised("optimality_gap", [right, wrong]).mean == 25
    assert summarised("proven_optimal", [right, wrong]).mean == 50
    assert summarised("global_optimum", [right, wrong], [1.0, 1.0]).mean == 50
    assert summarised("proven_optimal", [wrong]).half_width == 0
    with pytest.raises(NotMeasured, match="gave no bound"):
        summarised("matching_bound", [dataclasses.replace(right, bound=None)])


def embedded_toys(classes: int) -> Embedded:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(classes, 6, generator=g)
    labels = torch.arange(classes).repeat(30)
    vision = z[labels] + 0.05 * torch.randn(len(labels), 6, generator=g)
    names = tuple(f"class {k}" for k in range(classes))
    return Embedded(vision, labels, z[:, None], names, "toys", "local", "", "0")


@pytest.mark.parametrize("table", ["small_scale_cifar10", "larger_scale_cifar100", "unsupervised_classification"])
def test_the_papers_tables_run_on_what_stands_in_for_their_data(table, tmp_path, monkeypatch):
    """From claims to numbers: only the vectors are made up."""
    monkeypatch.setattr(official, "SEEDS", 2)
    monkeypatch.setattr(official, "SUBSETS", 1)
    monkeypatch.setattr(official, "SUBSET_SEEDS", 1)
    monkeypatch.setattr(official, "cluster_centres", lambda *a: cifar10.cluster_centres(*a, n_init=1))
    monkeypatch.setattr(official, "_data", lambda *of: toy_data())
    monkeypatch.setattr(official, "_missing_of", lambda *of: "")
    monkeypatch.setattr(official, "_vectors", lambda *of: embedded_toys(12 if "100" in table else 10))
    options = Options(tmp_path, tmp_path, full=True)
    rows = [r for r in official.rows(options) if r.table == table][:3]
    assert rows
    for row in rows:
        assert row.claim is not None or "branch and bound" in row.row
        assert row.data == "toys, 360 images", "never the paper's own"
        row = dataclasses.replace(row, settings=row.settings | {"limit": 1.0})
        found = official.measure(row, options, lambda f: None)
        assert np.mean(found) > 30 if isinstance(found, list) else found.mean > 50


def test_the_papers_figures_of_networks(tmp_path, monkeypatch):
    """Where vectors of three networks are at hand, and for the ratios those of the pixels."""
    monkeypatch.setattr(official, "SEEDS", 2)
    monkeypatch.setattr(official, "_data", lambda *of: toy_data())
    monkeypatch.setattr(official, "_missing_of", lambda *of: "")
    monkeypatch.setattr(official, "_vectors", lambda *of: embedded_toys(10))
    some = ("DINOv2 ViT-S/14", "DeiT-T/16", "DINO RN50", "Pixel values", "Random ViT-H/14")
    rows, options = official.rows, Options(tmp_path, tmp_path)
    monkeypatch.setattr(official, "rows", lambda options: [r for r in rows(options) if r.row in some])
    found = official_figures.pictures(options)
    assert set(found) == {"small_scale_cifar10_size", "small_scale_cinic10_size", "shuffling_coco_ratios"}
    assert all(png.startswith(b"\x89PNG") for png in found.values())
    network = official_figures._network(official.rows(options)[0], options)
    assert network.accuracy == 100, "a rotation"
    assert network.parameters > 5e6
    monkeypatch.setattr(official, "_missing_of", lambda *of: "its weights are not there")
    assert official_figures.pictures(options) == {}


def toy_data():
    class Toys:
        tier, title, note, sha256 = "local", "toys", "", "0"

        def __len__(self):
            return 360

    return Toys()


def test_stored_vectors_that_cannot_be_used(folder):
    path = folder / PLACES["CIFAR-10"]
    arrays = dict(np.load(path))
    for change, words in (
        ({"label": arrays["label"][:-1]}, "do not fit"),
        ({"label": np.zeros_like(arrays["label"])}, "each given to one image"),
        ({"feat": np.full_like(arrays["feat"], np.nan)}, "not finite"),
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(UserError, match=words):
            load_class_vectors(folder, "CIFAR-10")
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        load_class_vectors(folder, "CIFAR-10")
    np.save(folder / HUMAN, np.ones((10, 10)) / 10)
    with pytest.raises(UserError, match="10,000 distributions"):
        load_human_answers(folder)
    (folder / HUMAN).write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot be read"):
        load_human_answers(folder)
    assert len(CIFAR10) == 10
