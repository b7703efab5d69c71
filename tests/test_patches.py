"""DeepEMD's patches against torchvision's own transforms and the official grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from reproductions.deepemd.patches import (
    CIFAR_FS,
    COMMON,
    NORMALISATIONS,
    Fcn,
    Grid,
    Normalisation,
    Sampling,
    grid_interval,
)

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(width=120, height=90, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def slopes(width, height):
    """Red grows with the column, green with the row: where a patch comes from can be read off."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def torchvisions(*steps):
    """The official pipeline, which draws from torch's global generator."""
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(COMMON.mean, COMMON.std)])


CROP = torchvisions(transforms.RandomResizedCrop(84), transforms.RandomHorizontalFlip())


def test_grid_intervals_are_those_of_the_official_code(golden):
    rows = golden("deepemd_protocol")["grid_rows_size_ratio_n_k_lo_hi"]
    assert len(rows)
    for side, ratio, n, k, lower, upper in rows:
        assert grid_interval(int(side), float(ratio), int(n), int(k)) == (lower, upper)


def test_grid_intervals_by_hand():
    assert [grid_interval(84, 2.0, 2, k) for k in range(2)] == [(0, 63), (21, 84)]
    assert [grid_interval(10, 1.0, 3, k) for k in range(3)] == [(0, 2), (3, 5), (6, 8)]
    with pytest.raises(ValueError, match="4 px is too short for 5 cells"):
        grid_interval(4, 2.0, 5, 0)


@pytest.mark.parametrize("size", [(120, 90), (32, 32), (500, 20), (20, 500)])
@pytest.mark.parametrize("seed", range(4))
def test_random_crops_are_those_torchvision_draws(size, seed):
    """The elongated images need the central box, which is the last resort."""
    image = noise(*size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = torch.stack([CROP(image) for _ in range(4)])
    for train in (True, False):
        ours = Sampling(4)(image, train, generator(seed))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Fcn()(image, True, generator(seed)), expected[:1], rtol=1e-5, atol=1e-5)


def test_random_crops_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    for transform in (Fcn(), Grid((2,)), Sampling(2)):
        first, second = (transform(noise(), True, generator(3)) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, transform(noise(), True, generator(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_test_image_is_shrunk_without_its_aspect_ratio_and_cut():
    image = noise(200, 100)
    expected = torchvisions(transforms.Resize([92, 92]), transforms.CenterCrop(84))(image)
    ours = Fcn()(image, False, generator())
    assert ours.shape == (1, 3, 84, 84)
    torch.testing.assert_close(ours[0], expected, rtol=1e-5, atol=1e-5)


def test_grid_patches_are_cut_from_the_original_row_by_row():
    image = noise(250, 180)
    resized = torchvisions(transforms.Resize([84, 84]))
    for ratio, boxes in {
        2.0: [(0, 0, 187, 135), (62, 0, 250, 135), (0, 45, 187, 180), (62, 45, 250, 180)],
        1.0: [(0, 0, 124, 90), (125, 0, 249, 90), (0, 90, 124, 180), (125, 90, 249, 180)],
    }.items():
        expected = torch.stack([resized(image.crop(box)) for box in boxes])
        torch.testing.assert_close(Grid((2,), ratio)(image, False, generator()), expected, rtol=1e-5, atol=1e-5)
    levels = [Grid((n,))(image, False, generator()) for n in (3, 2)]
    pyramid = Grid((3, 2))(image, False, generator())
    assert pyramid.shape == (13, 3, 84, 84)
    assert torch.equal(pyramid, torch.cat(levels)), "levels in the order given"


def test_in_training_a_grid_level_has_one_random_ratio_and_flips_each_patch():
    image = slopes(240, 240)
    ratios, flipped, apart = [], [], []
    for seed in range(30):
        patches = 255 * Grid((2, 2), normalisation=PLAIN)(image, True, generator(seed))
        red, green = patches[:, 0], patches[:, 1]
        flipped += (red[:, 0, 0] > red[:, 0, -1]).tolist()
        extents = (green[:, -1].mean(1) - green[:, 0].mean(1)).reshape(2, 4)
        assert (extents.max(1).values - extents.min(1).values < 3).all(), "a level's patches have one size"
        reach = green[:, -1].mean(1).reshape(2, 4)[:, 0]
        ratios += ((reach - 60) / 60).tolist()
        apart.append(abs(reach[0] - reach[1]).item())
    assert max(apart) > 30, "each level has its own"
    assert 1 - 0.05 < min(ratios) < 1.3
    assert 2.7 < max(ratios) < 3 + 0.05
    assert 0.35 < np.mean(flipped) < 0.65


def test_normalisation():
    white, black = (Image.new("RGB", (84, 84), c) for c in ("white", "black"))
    for numbers in (COMMON, CIFAR_FS):
        patches = numbers([white, black])
        mean, std = torch.tensor(numbers.mean), torch.tensor(numbers.std)
        torch.testing.assert_close(patches[:, :, 0, 0], torch.stack([(1 - mean) / std, -mean / std]))
    assert COMMON.mean == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert COMMON.std == pytest.approx((0.2471, 0.2435, 0.2616), abs=1e-4)
    assert NORMALISATIONS == {"cifar_fs": CIFAR_FS}
    for transform in (Fcn, lambda n: Grid((1,), normalisation=n), lambda n: Sampling(1, n)):
        assert transform(CIFAR_FS)(black, False, generator())[0, 0, 0, 0].item() == pytest.approx(-0.5071 / 0.2009)
