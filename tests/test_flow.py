"""Flow files, the share of pixels a flow gets right, and the pairs of TSS."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest
from test_correspondence_data import picture, refuses

from reproductions import UserError
from reproductions.datasets.flow import flow_accuracy, known, read_flow, write_flow
from reproductions.datasets.tss import content, load_tss


def test_a_flow_is_read_as_it_was_written(tmp_path):
    flow = np.random.default_rng(0).normal(0, 9, (3, 5, 2)).astype(np.float32)
    flow[1, 2] = 1e10
    path = tmp_path / "a.flo"
    write_flow(path, flow)
    np.testing.assert_array_equal(read_flow(path), flow)
    assert read_flow(path).dtype == np.float32
    assert known(flow).sum() == 14
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_middleburys(tmp_path):
    path = tmp_path / "a.flo"
    path.write_bytes(struct.pack("<fii6f", 202021.25, 3, 1, 1, 2, 3, 4, 5, 6))
    np.testing.assert_array_equal(read_flow(path), [[[1, 2], [3, 4], [5, 6]]])
    write_flow(tmp_path / "b.flo", read_flow(path))
    assert (tmp_path / "b.flo").read_bytes() == path.read_bytes()
    assert path.read_bytes()[:4] == b"PIEH"


def test_files_that_are_no_flows_are_named(tmp_path):
    path = tmp_path / "a.flo"
    with pytest.raises(UserError, match=r"a\.flo cannot be read"):
        read_flow(path)
    whole = struct.pack("<fii6f", 202021.25, 3, 1, 1, 2, 3, 4, 5, 6)
    for data in (
        whole[:-4],
        whole + b"\0",
        b"PIEX" + whole[4:],
        b"",
        b"PIEH\0\0",
        b"PIEH" + struct.pack("<ii", -3, -1),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.flo") as caught:
            read_flow(path)
        assert "\n" not in str(caught.value)
    for bad in (np.zeros((3, 2)), np.zeros((3, 4, 3)), np.zeros((0, 4, 2))):
        with pytest.raises(ValueError, match="a flow has shape"):
            write_flow(path, bad)


def test_accuracy_counts_known_pixels_within_the_radius():
    truth = np.zeros((10, 40, 2), np.float32)
    truth[0] = 2e9
    predicted = truth + np.float32([2, 0])  # 5 % of 40 is 2: still right
    predicted[1, :, 1] = 0.5
    predicted[2] = 1e9
    predicted[0] = 0
    assert flow_accuracy(predicted, truth) == pytest.approx(700 / 9)
    assert flow_accuracy(predicted, truth, threshold=4.9) == 0
    assert flow_accuracy(predicted, truth, threshold=6) == pytest.approx(800 / 9)
    assert flow_accuracy(truth, truth, threshold=1) == 100
    predicted[3] = np.nan
    assert flow_accuracy(predicted, truth) == pytest.approx(600 / 9)


def test_flows_that_cannot_be_compared_are_refused():
    flow = np.zeros((4, 5, 2))
    with pytest.raises(ValueError, match="shape"):
        flow_accuracy(flow, flow[:3])
    with pytest.raises(ValueError, match="known"):
        flow_accuracy(flow, flow + 1e9)


@pytest.fixture
def tss(tmp_path):
    folder = tmp_path / "TSS" / "JODS" / "plane"
    for k in (1, 2):
        for kind in ("image", "mask"):
            picture(folder / f"{kind}{k}.png", 8, 6)
        (folder / f"flow{k}.flo").touch()
    name = "TSS_CVPR2016/JODS/plane/image"
    rows = f"source,target,flow,flip,category\n{name}2.png,{name}1.png,1,0,2\n{name}1.png,{name}2.png,2,1,2\n"
    (tmp_path / "TSS" / "test_pairs_tss.csv").write_text(rows)
    return tmp_path


def test_tss_finds_the_flow_and_mask_of_the_target(tss):
    forth, back = load_tss(tss)
    folder = tss / "TSS" / "JODS" / "plane"
    assert (forth.source, forth.target) == (folder / "image2.png", folder / "image1.png")
    assert (forth.flow, forth.mask) == (folder / "flow1.flo", folder / "mask1.png")
    assert (forth.flip_source, back.flip_source) == (False, True)
    assert (back.flow.name, back.mask.name, back.subset) == ("flow2.flo", "mask2.png", "JODS")


def test_the_hash_of_tss_is_that_of_its_flows_wherever_they_lie(tss, tmp_path):
    before = content(load_tss(tss))
    moved = tmp_path / "elsewhere"
    shutil.copytree(tss / "TSS", moved / "TSS")
    assert content(load_tss(moved)) == before
    write_flow(tmp_path / "other" / "flow1.flo", np.ones((6, 8, 2)))
    shutil.copytree(tss / "TSS", tmp_path / "other" / "TSS")
    shutil.copy(tmp_path / "other" / "flow1.flo", tmp_path / "other" / "TSS" / "JODS" / "plane")
    assert content(load_tss(tmp_path / "other")) != before
    assert content(load_tss(moved)[:1]) != before


def test_tss_names_the_file_that_is_wrong(tss):
    table = tss / "TSS" / "test_pairs_tss.csv"
    text = table.read_text()
    for bad in (text.replace(",1,0,2", ",3,0,2"), text.replace("JODS", "OTHER"), "a,b\nc,d\n"):
        table.write_text(bad)
        refuses(lambda: load_tss(tss), table)
    table.write_text(text)
    for name in ("mask2.png", "flow2.flo", "image2.png"):
        (tss / "TSS" / "JODS" / "plane" / name).unlink()
        refuses(lambda: load_tss(tss), name)
    table.unlink()
    refuses(lambda: load_tss(tss), table)
