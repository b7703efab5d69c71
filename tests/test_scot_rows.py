"""SCOT's rows on the paper's data: classes, dense flow, and the published numbers that stand beside them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from reproductions.claims import load_paper
from reproductions.datasets.flow import write_flow
from reproductions.experiment import Options
from reproductions.scot import flow_rows, keypoint_rows, setups, sources
from reproductions.scot.backbones import Backbone
from reproductions.scot.experiment import measure, rows
from reproductions.scot.setups import LATER, Network, Setup
from reproductions.scot.sources import Pair, Source
from reproductions.scot.views import View

SETS = (("pf_pascal", "PF-PASCAL", "image"), ("pf_willow", "PF-WILLOW", "keypoints"), ("spair", "SPair-71k", "box"))
CLASSES = {c.column.rpartition(", ")[2] for c in load_paper("scot").claims if c.table == "spair_classes"}
PAPERS_OWN = ("resnet50-0.pth", "resnet101-0.pth", "fcn_resnet101_coco-0.pth")


def pair(category: str, k: int) -> Pair:
    view = View(f"{category}/{k}", lambda: np.zeros((40, 60, 3), np.uint8))
    points = np.random.default_rng(k).uniform(0, 40, (5 + k % 3, 2))
    return Pair(view, view, points, points, 50.0, category)


@pytest.fixture
def options(tmp_path, monkeypatch):
    """The three data sets of keypoints, of a few pairs each, and empty files of weights of the paper's networks."""
    pairs = tuple(pair(category, k) for k, category in enumerate((*sorted(CLASSES), "cat", "dog", "dog")))
    made = tuple(Source(*names[:2], "paper", names[2], pairs, "0", masks=names[0] != "spair") for names in SETS)
    monkeypatch.setattr(sources, "embedded", lambda: ())
    monkeypatch.setattr(sources, "on_disk", lambda data, storage: made)
    (tmp_path / "data" / "weights").mkdir(parents=True)
    for name in PAPERS_OWN:
        (tmp_path / "data" / "weights" / name).touch()
    return Options(tmp_path / "results", tmp_path / "data")


def test_every_published_number_of_scot_stands_beside_one_row(options):
    found = rows(options)
    assert len({(r.table, r.row, r.column) for r in found}) == len(found)
    claimed = [r for r in found if r.claim is not None]
    assert all((r.table, r.row, r.column) == r.claim.key and r.data == r.claim.data for r in claimed)
    own = [c for c in load_paper("scot").claims if c.row.partition(" (")[0] == "SCOT"]
    others = {c.key for c in own} - {r.claim.key for r in claimed}
    assert {row for _, row, _ in others} == {"SCOT (FCN-101)"}, "another library's network, trained on other images"
    for r in claimed:
        masses = "uniform" if "uniform" in r.row else "activation"
        assert (r.settings["masses"], r.settings["hough"], r.settings["transport"]) == (masses, True, True)
        assert r.settings["exponent"] == (1 if r.data == "SPair-71k" else 0.5)
        layers = {"ResNet-50": [0, 11, 12, 13], "ResNet-101": [0, 19, 27, 28, 29, 30]}
        assert r.data != "SPair-71k" or r.settings["layers"] == layers[r.settings["network"]]


def test_a_network_is_measured_where_there_are_layers_for_it(options):
    found = {(r.data, r.settings["network"], r.settings["masses"]) for r in rows(options)}
    assert {data for data, network, _ in found if network == "ResNet-50"} == {"SPair-71k"}
    assert {masses for _, network, masses in found if network == "FCN-101"} == {"uniform", "mask"}
    assert not [f for f in found if f[0] == "SPair-71k" and f[2] == "mask"]


def test_weights_of_a_later_recipe_stand_beside_no_published_number(options):
    for name in PAPERS_OWN:
        (options.data / "weights" / name).unlink()
    for name in LATER:
        (options.data / "weights" / name).touch()
    found = rows(options)
    assert {r.settings["network"] for r in found} == {"ResNet-50", "ResNet-101"}
    assert {r.claim for r in found} == {None}
    assert not [r for r in found if r.table.startswith("code")]


def test_votes_are_whole_on_spair_and_tss_and_the_cosine_stays_cubed():
    for data_set, exponent in (("pf_willow", 0.5), ("spair", 1), ("tss", 1)):
        assert Setup("ResNet-101", "OT + RHM", data_set).matching.exponent == exponent
        assert Setup("ResNet-101", "NN + RHM", data_set).matching.exponent == 3


def test_the_classes_make_up_the_whole(options, monkeypatch):
    """Class means weighted by pairs are the pooled mean, from keypoints moved once; one pair has them as samples."""
    count = []

    def moved(setup: Setup, pair: Pair) -> torch.Tensor:
        count.append(setup)
        noise = np.random.default_rng(len(pair.category)).normal(0, 4, pair.source_keypoints.shape)
        return torch.from_numpy(pair.source_keypoints + noise)

    monkeypatch.setattr(keypoint_rows, "moved_keypoints", moved)
    found = [r for r in rows(options) if r.data == "SPair-71k" and r.settings["alpha"] == 0.1]
    samples = {(r.table, r.row, r.column): measure(r, options, lambda f: None) for r in found if r.row == "SCOT"}
    pairs = sources.on_disk(None, None)[2].pairs
    assert len(count) == len(pairs) == 21
    pooled = samples.pop(("spair", "SCOT", "PCK@0.10 (box)"))
    assert len(pooled) == 21
    by_class = {column.rpartition(", ")[2]: x for (_, _, column), x in samples.items()}
    assert set(by_class) == CLASSES
    assert [len(by_class[name]) for name in ("cat", "dog")] == [2, 3]
    sizes = [sum(p.category == name for p in pairs) for name in by_class]
    assert np.average([np.mean(x) for x in by_class.values()], weights=sizes) == pytest.approx(np.mean(pooled))
    assert 0 < np.mean(pooled) < 100
    assert set(by_class["aeroplane"]) <= {0.0, 100.0}
    assert len(by_class["aeroplane"]) == len(pairs[0].source_keypoints)


# --------------------------------------------------------------------------------------------------------- dense flow


@pytest.fixture
def tss(tmp_path, monkeypatch):
    """TSS of two pairs of images in an archive, the second image a copy of the first; and a small network."""
    rng, lines = np.random.default_rng(0), ["source,target,flow,flip,category"]
    for subset, name, flip in (("JODS", "plane", 0), ("FG3DCar", "001", 1)):
        folder = tmp_path / "made" / "TSS" / subset / name
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        for k in (1, 2):
            Image.fromarray(pixels).save(folder / f"image{k}.png")
            Image.fromarray(pixels).save(folder / f"mask{k}.png")
            write_flow(folder / f"flow{k}.flo", np.zeros((72, 96, 2)))
            lines.append(f"x/{subset}/{name}/image{3 - k}.png,x/{subset}/{name}/image{k}.png,{k},{flip},1")
    (tmp_path / "made" / "TSS" / "test_pairs_tss.csv").write_text("\n".join(lines))
    folder = tmp_path / "data"
    (folder / "weights").mkdir(parents=True)
    shutil.make_archive(str(folder / "tss"), "zip", tmp_path / "made", "TSS")
    torch.manual_seed(0)
    weights = timm.create_model("mobilenetv2_050").state_dict()
    safetensors.torch.save_file(weights, folder / "weights" / "small.safetensors")
    small = Network(Backbone("mobilenetv2_050", (5, 6)), "small*.safetensors")
    monkeypatch.setattr(setups, "NETWORKS", {"Small": small, "ResNet-50": setups.NETWORKS["ResNet-50"]})
    (folder / "weights" / "resnet50-0.pth").touch()
    monkeypatch.setattr(sources, "embedded", lambda: ())
    return Options(tmp_path / "results", folder)


def test_tss_has_rows_by_subset_and_for_all_pairs(tss):
    found = rows(tss)
    assert {(r.table, r.metric, r.claim, r.settings["exponent"]) for r in found if r.settings["transport"]} == {
        ("tss", "flow_accuracy", None, 1)
    }
    columns = [f"accuracy@5 %, {name}" for name in ("FG3DCar", "JODS", "all pairs")]
    assert [(r.row, r.column) for r in found] == [(f"Small: {s}", c) for s in flow_rows.STAGES for c in columns]
    samples = {r.column: measure(r, tss, lambda f: None) for r in found if r.row.endswith("OT + CAM + RHM")}
    car, plane, both = (samples[c] for c in columns)
    assert plane == [100.0], "an image flows nowhere into itself"
    assert car[0] < 50, "and elsewhere into its mirror image"
    assert sorted(both) == sorted(car + plane)


def test_pairs_scored_before_a_kill_are_not_scored_again(tss, monkeypatch):
    scored, told = [], []

    def evaluate(pair, *given):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(pair)
        return 10.0 * len(scored)

    monkeypatch.setattr(flow_rows, "evaluate_pair", evaluate)
    car, plane, both = rows(tss)[:3]
    with pytest.raises(KeyboardInterrupt):
        measure(both, tss, told.append)
    assert told == [0.25, 0.5, 0.75]
    monkeypatch.setattr(flow_rows, "evaluate_pair", lambda pair, *given: scored.append(pair) or 40.0)
    assert sorted(measure(both, tss, told.append)) == [15.0, 35.0], "the mean of the two directions"
    assert (measure(car, tss, told.append), measure(plane, tss, told.append)) == ([15.0], [35.0])
    assert len(scored) == len(set(scored)) == 4


def test_a_folder_without_tss_has_no_rows_of_it(tmp_path):
    assert list(flow_rows.rows(Options(tmp_path))) == []
    (tmp_path / "data").mkdir()
    assert list(flow_rows.rows(Options(tmp_path, tmp_path / "data"))) == []
