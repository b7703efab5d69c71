"""Dense flow by SCOT: the fast transfer against the plain one, known shifts, and pairs on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from reproductions import UserError
from reproductions.datasets.flow import read_flow, write_flow
from reproductions.datasets.tss import FlowPair
from reproductions.scot import dense
from reproductions.scot.backbones import Backbone
from reproductions.scot.cells import Cells
from reproductions.scot.dense import dense_flow, evaluate_pair, grid_points, pruned, transferred_grid
from reproductions.scot.method import Hyperpixels, Matching

PLAIN = Matching(transport=False, hough=False)  # each cell goes to the most similar one


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("field", "jump", "kept"), [(27, 8, 130), (27, 8, 40), (11, 4, 20), (8, 4, 100), (3, 16, 130)])
def test_the_fast_transfer_is_the_plain_one(field, jump, kept, monkeypatch):
    """With all cells or some, where boxes overlap and where they leave gaps: then in several parts."""
    monkeypatch.setattr(dense, "AT_ONCE", 40 * kept)
    cells = Cells.of_map((10, 13), jump, field, (10 * jump, 13 * jump))
    target = Cells.of_map((7, 9), 4, 19, (40, 40))
    source = cells.subset(torch.randperm(130, generator=draw(kept))[:kept])
    match = torch.randint(len(target), (kept,), generator=draw(0))
    # Whole and half numbers fall on the borders of boxes too.
    x, y = torch.arange(-8, 13 * jump, 1.5), torch.arange(0, 10 * jump, 1.0) + 0.25 * (field == 11)
    points = grid_points(x, y)
    assert points.shape == (len(y), len(x), 2)
    assert points[3, 5].tolist() == [x[5], y[3]]
    wanted = source.transfer(target, match, points.reshape(-1, 2)).reshape(points.shape)
    torch.testing.assert_close(transferred_grid(source, target, match, x, y).float(), wanted, rtol=0, atol=1e-4)
    covered = ((points[:, :, None] - source.centres).abs() <= field // 2).all(-1).any(-1)
    assert covered.any()
    assert covered.all() == (field == 27 and kept == 130)


def image(rows: int, columns: int, seed: int = 0, jump: int = 8, field: int = 19) -> Hyperpixels:
    cells = Cells.of_map((rows, columns), jump, field, (jump * rows, jump * columns))
    return Hyperpixels(torch.randn(len(cells), 64, generator=draw(seed)), cells, torch.ones(len(cells)))


def test_an_image_flows_nowhere_into_itself():
    source = image(9, 12)
    for matching in (Matching(), Matching(hough=False), PLAIN):
        flow = dense_flow(source, source, matching, 0.4, 0.4, (180, 240))
        assert (flow.shape, flow.dtype) == ((180, 240, 2), np.float32)
        np.testing.assert_allclose(flow, 0, atol=1e-3)


def test_a_shift_by_whole_cells_is_the_flow():
    """The target shows at cell (x, y) what the source shows at (x + 2, y + 1): in its own frame, 16 and 8 px on."""
    source = image(12, 14)
    grid = source.features.reshape(12, 14, -1)
    cells = Cells.of_map((9, 10), 8, 19, (72, 80))
    target = Hyperpixels(grid[1:10, 2:12].reshape(90, -1), cells, torch.ones(90))
    flow = dense_flow(source, target, Matching(), 1.0, 1.0, (72, 80))
    np.testing.assert_allclose(flow, np.broadcast_to([16.0, 8.0], (72, 80, 2)), atol=1e-3)
    # The same images, resized from half and from twice the size: pixel (u, v), counted from 1, is at (2u + 16, 2v + 8)
    # of the resized source, and at half of that in the original.
    flow = dense_flow(source, target, Matching(), 0.5, 2.0, (36, 40))
    v, u = np.mgrid[1:37, 1:41]
    wanted = np.stack([(2 * u + 16) / 0.5 - u, (2 * v + 8) / 0.5 - v], -1)
    np.testing.assert_allclose(flow, wanted, atol=1e-3)


def test_cells_whose_boxes_leave_the_image_take_no_part():
    source = image(9, 12, field=43)  # 21 px to each side, of which 10 may be outside: centres from 16 to 56 and 80
    left = pruned(source)
    assert len(left.cells) == 6 * 9
    assert left.cells.centres.amin(0).tolist() == [16, 16]
    assert left.cells.centres.amax(0).tolist() == [80, 56]
    kept = source.cells.inside()
    assert torch.equal(left.features, source.features[kept])
    assert torch.equal(pruned(replace(source, weights=torch.arange(108.0))).weights, torch.arange(108.0)[kept])
    # Corners that would lead astray do not: the only equal features of the rest are at the same place.
    target = replace(source, features=source.features.clone())
    target.features[0], target.features[-1] = source.features[-1], source.features[0]
    np.testing.assert_allclose(dense_flow(source, target, PLAIN, 1, 1, (72, 96)), 0, atol=1e-3)
    with pytest.raises(UserError, match="no receptive field of 107 px fits an image resized to 96 x 72"):
        pruned(image(9, 12, field=107))


# ------------------------------------------------------------------------------------------------------ pairs on disk


@pytest.fixture
def pair(tmp_path):
    """A mirrored image as the source of itself: its flow is zero once it is mirrored back."""
    pixels = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "image1.png")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "image2.png")
    truth = np.zeros((120, 160, 2), np.float32)
    truth[:30] = 2e9
    write_flow(tmp_path / "flow1.flo", truth)
    files = (tmp_path / name for name in ("image2.png", "image1.png", "flow1.flo", "mask1.png"))
    return FlowPair(*files, flip_source=True, subset="JODS")


BACKBONE = Backbone("mobilenetv2_050", (1, 3), "random")


def test_a_pair_is_scored_by_its_flow_file(pair):
    for masses in ("uniform", "activation"):
        assert evaluate_pair(pair, BACKBONE, PLAIN, masses, side=96) == 100
    assert evaluate_pair(replace(pair, flip_source=False), BACKBONE, PLAIN, side=96) < 50
    truth = read_flow(pair.flow)
    truth[30:75, :, 0] = 8.1  # of 90 known rows half are off by more than 5 % of 160 px
    write_flow(pair.flow, truth)
    assert evaluate_pair(pair, BACKBONE, Matching(), side=96) == pytest.approx(50)


def test_a_flow_that_does_not_fit_is_named(pair):
    for flow in (np.zeros((9, 160, 2)), np.full((120, 160, 2), 2e9)):
        write_flow(pair.flow, flow)
        with pytest.raises(UserError, match=r"flow1\.flo is no flow of .*image1\.png: "):
            evaluate_pair(pair, BACKBONE, Matching(), side=96)
