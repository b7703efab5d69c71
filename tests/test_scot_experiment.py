"""SCOT as it is run: rows, what is measured of them, data sets of a folder, pictures."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from scipy.io import savemat

from reproductions import UserError
from reproductions.datasets.files import unpacked
from reproductions.datasets.warped import load_warped_photographs
from reproductions.experiment import Options
from reproductions.scot import figures, keypoint_rows, setups, sources
from reproductions.scot.descriptors import JUMP, daisy_cells
from reproductions.scot.experiment import measure, pictures, rows
from reproductions.scot.keypoint_rows import ALPHAS, BY_CLASS, EMBEDDED
from reproductions.scot.setups import DAISY, STAGES, Setup


@pytest.fixture
def few(monkeypatch):
    """Two embedded pairs instead of sixty-one."""
    pairs = load_warped_photographs(1)[::9]
    made = (sources._in_memory("warped_photographs", "warped photographs", pairs),)
    monkeypatch.setattr(sources, "embedded", lambda: made)
    return made[0]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of the user's: PF-WILLOW of two images in an archive, and a network, half as wide, of random weights."""
    wide = setups.NETWORKS["MobileNetV2"]
    narrow = replace(wide, backbone=replace(wide.backbone, name="mobilenetv2_050", layers=(5, 9)))
    monkeypatch.setitem(setups.NETWORKS, "MobileNetV2", narrow)
    rng, root = np.random.default_rng(0), tmp_path / "made"
    for k in range(2):
        for folder in ("PF-dataset-WILLOW", "PF-WILLOW-FCN"):
            path = root / folder / "duck(S)" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
        savemat(root / "PF-dataset-WILLOW" / "duck(S)" / f"{k}.mat", {"pts_coord": rng.uniform(5, 40, (2, 10))})
    folder = tmp_path / "data"
    (folder / "weights").mkdir(parents=True)
    with tarfile.open(folder / "willow.tar", "w") as archive:
        for name in ("PF-dataset-WILLOW", "PF-WILLOW-FCN"):
            archive.add(root / name, name)
    torch.manual_seed(0)
    weights = timm.create_model("mobilenetv2_050", pad_type="same").half().state_dict()
    safetensors.torch.save_file(weights, folder / "weights" / "mobilenetv2_100_same.safetensors")
    return folder


def test_every_stage_is_measured_on_the_embedded_pairs(few, tmp_path):
    options = Options(tmp_path)
    found = rows(options)
    assert [r.row for r in found] == [stage for stage in EMBEDDED for _ in ALPHAS]
    values = {(r.row, r.settings["alpha"]): measure(r, options, lambda fraction: None) for r in found}
    assert all(len(v) == len(few.pairs) == 2 for v in values.values())
    means = {k: np.mean(v) for k, v in values.items()}
    assert means["OT + RHM", 0.1] > 90 > means["no matching", 0.05]
    for stage in EMBEDDED:
        assert means[stage, 0.05] <= means[stage, 0.1] <= means[stage, 0.15]
    assert all(r.claim is None and r.tier == "embedded" for r in found)


def test_the_keypoints_of_a_stage_are_computed_once_for_all_radii(few, tmp_path, monkeypatch):
    options, moved, count = Options(tmp_path), keypoint_rows.moved_keypoints, []
    monkeypatch.setattr(keypoint_rows, "moved_keypoints", lambda s, pair: count.append(s.stage) or moved(s, pair))
    for row in [r for r in rows(options) if r.row == "NN"]:
        measure(row, options, lambda fraction: None)
    assert count == ["NN", "NN"]


def test_without_matching_a_point_keeps_its_place_in_the_image(few):
    pair = few.pairs[0]
    moved = keypoint_rows.moved_keypoints(Setup(DAISY, "no matching", few.name), pair)
    sizes = [v.pixels().shape[1::-1] for v in (pair.source, pair.target)]
    np.testing.assert_allclose(moved.numpy() / sizes[1], pair.source_keypoints / sizes[0])


def test_a_single_pair_has_its_keypoints_as_samples(monkeypatch, tmp_path):
    one = (sources._in_memory("stereo_motorcycle", "stereo motorcycle", load_warped_photographs(1)[:1]),)
    monkeypatch.setattr(sources, "embedded", lambda: one)
    row = next(r for r in rows(Options(tmp_path)) if r.row == "OT + RHM")
    samples = measure(row, Options(tmp_path), lambda fraction: None)
    assert len(samples) == len(one[0].pairs[0].source_keypoints)
    assert set(samples) <= {0.0, 100.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tarfile")
def test_a_folder_of_the_user_s_gives_rows_for_its_data_and_networks(few, data, tmp_path, monkeypatch):
    options = Options(tmp_path / "results", data)
    found = [r for r in rows(options) if r.tier == "paper"]
    assert {r.row for r in found} == {f"MobileNetV2: {stage}" for stage in STAGES}
    assert {(r.data, r.claim) for r in found} == {("PF-WILLOW", None)}
    assert {r.table for r in found} == {"pf_willow", "pf_willow_classes"}
    of_class = [r for r in found if r.table == "pf_willow_classes"]
    assert [r.row for r in of_class] == [f"MobileNetV2: {stage}" for stage in BY_CLASS]
    assert {r.column for r in of_class} == {"PCK@0.10 (keypoints), duck(S)"}
    for stage in ("OT + CAM + RHM", "OT + masks"):
        row = next(r for r in found if r.row.endswith(stage))
        samples = measure(row, options, lambda fraction: None)
        assert len(samples) == 2
        assert all(0 <= x <= 100 for x in samples)
    monkeypatch.setattr(figures, "DPI", 40)  # the same pictures, but fast
    drawn = pictures(options)
    wanted = {"pf_willow": (0, 1), "warped_photographs": (0, 1)}
    matches = {f"{name}_matches_{k}" for name, numbers in wanted.items() for k in numbers}
    assert set(drawn) == matches | {f"{name}_plan_0" for name in wanted}
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())


def test_archives_are_unpacked_once_and_broken_ones_named(data, tmp_path):
    place = unpacked(data, ("PF-dataset-WILLOW",), tmp_path / "there")
    assert (place / "PF-dataset-WILLOW" / "duck(S)" / "0.png").exists()
    (place / "mark").touch()
    assert unpacked(data, ("PF-dataset-WILLOW",), tmp_path / "there") == place
    assert (place / "mark").exists()
    assert unpacked(data, ("SPair-71k",), tmp_path / "there") is None
    shutil.make_archive(str(data / "other"), "zip", place, "PF-WILLOW-FCN")
    assert (unpacked(data, ("PF-WILLOW-FCN",), tmp_path / "there") / "PF-WILLOW-FCN").is_dir()
    whole = (data / "willow.tar").read_bytes()
    (data / "willow.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"willow.tar cannot be unpacked"):
        unpacked(data, ("PF-dataset-WILLOW",), tmp_path / "there")
    assert not [p for p in (tmp_path / "there").iterdir() if p.name.startswith("tmp")]


def test_descriptors_lie_on_cells_from_the_corner_on():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found, ratio = daisy_cells(image, 120)
    assert ratio == 1.5
    assert found.cells.size == (90, 120)
    assert found.cells.centres.amax(0).tolist() == [(120 - 1) // JUMP * JUMP, (90 - 1) // JUMP * JUMP]
    assert len(found.features) == len(found.cells) == 12 * 15
