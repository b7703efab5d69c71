"""The pictures of matches: what is right is green, what is wrong red, and the same input gives the same file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from reproductions.datasets.warped import load_stereo_motorcycle
from reproductions.scot.cells import Cells
from reproductions.scot.figures import RIGHT, WRONG, draw_comparison, draw_matches, draw_plan
from reproductions.scot.method import Hyperpixels


@pytest.fixture(scope="module")
def pair():
    return load_stereo_motorcycle()


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < 500_000
    with Image.open(io.BytesIO(png)) as image:
        assert image.width <= 1600
        assert not image.info.keys() & {"Software", "Creation Time"}
        return np.array(image.convert("RGB"))


def count(png: bytes, colour: str) -> int:
    return int((pixels(png) == ImageColor.getrgb(colour)).all(-1).sum())


def matches(pair, predicted) -> bytes:
    return draw_matches(pair.source, pair.target, pair.source_keypoints, predicted, pair.target_keypoints, 15.0)


def test_right_matches_are_green_and_wrong_ones_red(pair):
    truth = pair.target_keypoints
    right, wrong = matches(pair, truth + np.array([14.9, 0])), matches(pair, truth + np.array([0, 15.1]))
    assert (count(right, RIGHT) > 5000, count(right, WRONG)) == (True, 0)
    assert (count(wrong, RIGHT), count(wrong, WRONG) > 5000) == (0, True)
    one_wrong = truth.copy()
    one_wrong[3] += 40
    mixed = matches(pair, one_wrong)
    assert 50 < count(mixed, WRONG) < count(mixed, RIGHT)
    assert len({right, wrong, mixed}) == 3


def test_the_same_input_gives_the_same_file(pair):
    assert matches(pair, pair.target_keypoints) == matches(pair, pair.target_keypoints)


def test_a_comparison_has_a_row_for_each_method(pair):
    truth, rows = pair.target_keypoints, {"OT": pair.target_keypoints, "cosine": pair.target_keypoints + 50}
    png = draw_comparison(pair.source, pair.target[:150, :200], pair.source_keypoints, truth, rows, 15.0)
    picture = pixels(png)
    upper, lower = np.split(picture[: len(picture) // 2 * 2], 2)
    for half, there, absent in ((upper, RIGHT, WRONG), (lower, WRONG, RIGHT)):
        assert (half == ImageColor.getrgb(there)).all(-1).any()
        assert not (half == ImageColor.getrgb(absent)).all(-1).any()


def plan_picture(pair, plan, points, kept=None) -> bytes:
    cells = Cells.of_map((10, 15), 20, 43, (200, 300))
    source = Hyperpixels(torch.zeros(150, 1), cells, torch.ones(150))
    target = source if kept is None else Hyperpixels(torch.zeros(len(kept), 1), cells.subset(kept), torch.ones(1))
    return draw_plan(pair.source, pair.target, source, target, plan, points)


def bright(png: bytes, panel: int, panels: int) -> np.ndarray:
    """The mean place of the yellow of a heat map, as shares of the width and height of its panel."""
    picture = pixels(png).astype(int)
    width = picture.shape[1] // panels
    part = picture[:, panel * width : (panel + 1) * width]
    y, x = ((part[..., 0] > 220) & (part[..., 2] < 60)).nonzero()
    return np.array([x.mean() / width, y.mean() / len(picture)])


def test_a_plan_is_bright_where_its_mass_goes(pair):
    """Cell 18 (row 1, column 3) sends all to cell 141 (row 9, column 6), with all of the target's cells or some."""
    plan = torch.full((150, 150), 1e-9)
    plan[141, 18] = 1
    points = np.array([[61.0, 19.0]])
    x, y = bright(plan_picture(pair, plan, points), 1, 2)
    assert x == pytest.approx(6 / 15, abs=0.05)
    assert y > 0.75
    kept = torch.tensor([0, 9, 141, 149])
    assert bright(plan_picture(pair, plan[kept], points, kept), 1, 2) == pytest.approx([x, y], abs=0.02)
    plan[141, 18], plan[12, 18] = 0, 1
    assert bright(plan_picture(pair, plan, points), 1, 2)[1] < 0.4


def test_plans_of_many_points_fill_several_rows(pair):
    plan = torch.rand(150, 150, generator=torch.Generator().manual_seed(0))
    points = np.random.default_rng(0).uniform(0, 200, (5, 2))
    few, many = (plan_picture(pair, plan, points[:k]) for k in (2, 5))
    assert pixels(many).shape[1] == pixels(few).shape[1]
    assert pixels(many).shape[0] == pytest.approx(2 * pixels(few).shape[0], abs=2)
