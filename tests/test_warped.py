"""The embedded correspondences: what a keypoint points at is what its partner points at."""

from __future__ import annotations

import numpy as np
import pytest
import skimage
from scipy.ndimage import gaussian_filter

from reproductions import UserError
from reproductions.datasets import warped


@pytest.mark.parametrize("kind", ["homography", "spline"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_bright_dot_is_where_its_keypoint_says(kind, seed):
    blank = np.zeros((90, 120, 3), np.uint8)
    pair = warped.warped_pair(blank, "dot", "dot", kind, (seed,))
    assert pair.source_keypoints.shape == pair.target_keypoints.shape == (40, 2)
    y, x = np.mgrid[:90, :120]
    found = []
    for u, v in pair.target_keypoints:
        dot = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 1.2**2))
        view = warped.warped_pair(np.repeat(dot[..., None], 3, 2).round().astype(np.uint8), "", "", kind, (seed,))
        light = view.source[..., 0].astype(float)
        found.append([(light * x).sum() / light.sum(), (light * y).sum() / light.sum()])
    inner = ((pair.target_keypoints > 8) & (pair.target_keypoints < [111, 81])).all(1)
    inner &= ((pair.source_keypoints > 12) & (pair.source_keypoints < [107, 77])).all(1)
    assert inner.sum() >= 12
    assert np.abs(np.array(found) - pair.source_keypoints)[inner].max() < 0.35, "a curved map moves a blob's centroid"


def test_warped_photographs_are_seeded_and_show_the_same_things():
    pairs = warped.load_warped_photographs(warps=1)
    assert len({p.name for p in pairs}) == len(pairs) == 2 * len(warped.PHOTOGRAPHS)
    again, other = warped.load_warped_photographs(warps=1), warped.load_warped_photographs(warps=1, seed=1)
    for pair, same, different in zip(pairs, again, other, strict=True):
        np.testing.assert_array_equal(pair.source, same.source)
        np.testing.assert_array_equal(pair.target_keypoints, same.target_keypoints)
        assert not np.array_equal(pair.source, different.source)
        check_views(pair)


def test_the_stereo_pair_shows_the_same_things():
    pair = warped.load_stereo_motorcycle()
    check_views(pair)
    np.testing.assert_allclose(pair.source_keypoints[:, 1], pair.target_keypoints[:, 1])
    shift = pair.source_keypoints - pair.target_keypoints
    assert (shift[:, 0] > 2).all()
    assert np.ptp(shift[:, 0]) > 5


def check_views(pair: warped.ImagePair) -> None:
    """Shapes are as documented, and the partners look alike where a keypoint moved by three pixels does not."""
    assert pair.source.dtype == pair.target.dtype == np.uint8
    assert max(pair.target.shape[:2]) == pair.threshold == 300
    assert pair.source_keypoints.shape == pair.target_keypoints.shape == (40, 2)
    for points, image in ((pair.source_keypoints, pair.source), (pair.target_keypoints, pair.target)):
        assert (points >= -0.5).all()
        assert (points <= np.array(image.shape[1::-1]) - 0.5).all()
    source, target = (gaussian_filter(i.mean(-1), 1) for i in (pair.source, pair.target))

    def difference(move: tuple[int, int]) -> float:
        picked = []
        for image, points in ((source, pair.source_keypoints), (target, pair.target_keypoints + move)):
            x, y = np.clip(points.round().astype(int), 0, np.array(image.shape[::-1]) - 1).T
            picked.append(image[y, x])
        return float(np.median(np.abs(picked[0] - picked[1])))

    assert difference((0, 0)) < min(difference(m) for m in ((6, 0), (-6, 0), (0, 6), (0, -6)))


def test_pictures_that_are_not_shipped_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    for load, name in (
        (warped.load_warped_photographs, "astronaut.png"),
        (warped.load_stereo_motorcycle, "motorcycle_left.png"),
    ):
        with pytest.raises(UserError, match=name):
            load()


def test_occluded_pixels_are_no_keypoints():
    # Pixels 4 and 5 land on 0 and 1, in front of 0, 1 and 2; pixel 6 is unknown and 8 leaves the image.
    row = np.array([0.0, 1.0, 1.0, 1.0, 4.0, 4.0, np.nan, 1.0, 9.0])
    visible = [warped._visible(row, x) for x in range(len(row))]
    assert visible == [False, False, False, True, True, True, False, True, False]
