"""The embedded correspondences: photographs that ship inside scikit-image, with exactly known partners.

Six photographs are seen under seeded homographies and thin-plate splines; the Middlebury motorcycle is a real stereo
pair with measured disparities. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import skimage
from PIL import Image
from scipy.interpolate import RBFInterpolator
from skimage.transform import warp

from reproductions import UserError
from reproductions.datasets.annotations import existing
from reproductions.datasets.correspondence import read_image

PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg")
LICENCE = "public domain, CC0 or no known copyright restrictions, as scikit-image documents image by image"
SIDE = 300
KEYPOINTS = 40
BEND = 0.06  # of the side: how far the control points of a spline move, one standard deviation
TILT = 0.2  # of the side: how far the corners of a homography move at most

Warp = Literal["homography", "spline"]
Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two images in memory and keypoints of which the exact partner is known.

    Attributes:
        source: uint8 ``(H, W, 3)``.
        source_keypoints: float64 ``(K, 2)``, x first; pixel centres are whole numbers.
        threshold: base τ of PCK, the longer side of the target.
    """

    name: str
    source: np.ndarray
    target: np.ndarray
    source_keypoints: np.ndarray
    target_keypoints: np.ndarray
    category: str
    threshold: float


def load_warped_photographs(warps: int = 5, seed: int = 0) -> tuple[ImagePair, ...]:
    """Every photograph under so many seeded homographies and as many thin-plate splines.

    Raises:
        UserError: scikit-image is installed without its pictures.
    """
    kinds: tuple[Warp, ...] = ("homography", "spline")
    return tuple(
        warped_pair(photograph, f"{Path(file).stem}, {kind} {k}", Path(file).stem, kind, (seed, number, k))
        for number, file in enumerate(PHOTOGRAPHS)
        for photograph in [_shrunk(read_image(_shipped(file)))]
        for kind in kinds
        for k in range(warps)
    )


def warped_pair(photograph: np.ndarray, name: str, category: str, kind: Warp, seed: tuple[int, ...]) -> ImagePair:
    """The photograph as target and a warped view of it as source.

    The view at x shows the photograph at φ(x), so that partners need no inverse: they are φ of the keypoints.
    """
    height, width = photograph.shape[:2]
    rng = np.random.default_rng([*seed, kind == "spline"])
    to_target = _homography(rng, height, width) if kind == "homography" else _spline(rng, height, width)
    view = warp(photograph, to_target, order=1, mode="edge", preserve_range=True)
    grid = _jittered_grid(rng, height, width)
    inside = ((to_target(grid) >= 0) & (to_target(grid) <= [width - 1, height - 1])).all(1)
    source = _spread(grid[inside])
    return ImagePair(
        name=name,
        source=np.rint(view).astype(np.uint8),
        target=photograph,
        source_keypoints=source,
        target_keypoints=to_target(source),
        category=category,
        threshold=float(max(height, width)),
    )


def load_stereo_motorcycle(seed: int = 0) -> ImagePair:
    """The left view as source, the right one as target; keypoints lie where the disparity is known and unoccluded.

    Raises:
        UserError: scikit-image is installed without its pictures.
    """
    left, right = (read_image(_shipped(f"motorcycle_{side}.png")) for side in ("left", "right"))
    with np.load(_shipped("motorcycle_disp.npz"), allow_pickle=False) as stored:
        disparity = stored["arr_0"].astype(np.float64)
    height, width = disparity.shape
    grid = np.rint(_jittered_grid(np.random.default_rng(seed), height, width)).astype(np.int64)
    visible = np.array([_visible(disparity[y], x) for x, y in grid])
    source = _spread(grid[visible])
    target = source - np.stack([disparity[source[:, 1], source[:, 0]], np.zeros(len(source))], axis=1)
    small = _shrunk(left)
    ratio = np.array(small.shape[1::-1]) / [width, height]
    return ImagePair(
        name="motorcycle, stereo",
        source=small,
        target=_shrunk(right),
        source_keypoints=(source + 0.5) * ratio - 0.5,  # resizing keeps the corners of pixels, not their centres
        target_keypoints=(target + 0.5) * ratio - 0.5,
        category="motorcycle",
        threshold=float(SIDE),
    )


def _shipped(file: str) -> Path:
    return existing(Path(skimage.__file__).parent / "data" / file, "a picture of scikit-image")


def _shrunk(photograph: np.ndarray) -> np.ndarray:
    height, width = photograph.shape[:2]
    size = (round(width * SIDE / max(height, width)), round(height * SIDE / max(height, width)))
    return np.array(Image.fromarray(photograph).resize(size, Image.Resampling.BICUBIC))


def _homography(rng: np.random.Generator, height: int, width: int) -> Map:
    """The homography that moves each corner towards the middle, by at most ``TILT``."""
    inward = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)
    moved = corners + inward * rng.uniform(0, TILT * min(height, width), (4, 2))
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    H = np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)

    def to_target(points: np.ndarray) -> np.ndarray:
        mapped = np.column_stack([points, np.ones(len(points))]) @ H.T
        return mapped[:, :2] / mapped[:, 2:]

    return to_target


def _spline(rng: np.random.Generator, height: int, width: int) -> Map:
    """The thin-plate spline through a 4 × 4 grid of control points, each moved at random."""
    x, y = np.meshgrid(np.linspace(0, width - 1, 4), np.linspace(0, height - 1, 4))
    control = np.column_stack([x.ravel(), y.ravel()])
    moved = control + rng.normal(0, BEND * min(height, width), control.shape)
    return RBFInterpolator(control, moved, kernel="thin_plate_spline")


def _jittered_grid(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Points a tenth of the side apart, each moved by at most a quarter of that; nothing looks at the picture."""
    step = max(height, width) / 10
    x, y = np.meshgrid(np.arange(step / 2, width - 1, step), np.arange(step / 2, height - 1, step))
    grid = np.column_stack([x.ravel(), y.ravel()])
    return np.clip(grid + rng.uniform(-step / 4, step / 4, grid.shape), 0, [width - 1, height - 1])


def _spread(points: np.ndarray) -> np.ndarray:
    """``KEYPOINTS`` of the points, evenly over their order."""
    if len(points) < KEYPOINTS:
        raise UserError(
            f"only {len(points)} keypoints lie in both images, and {KEYPOINTS} are needed: take another seed"
        )
    return points[np.linspace(0, len(points) - 1, KEYPOINTS).round().astype(np.int64)]


def _visible(row: np.ndarray, x: int) -> bool:
    """Whether pixel x of a row of disparities is seen on the right: no nearer pixel lands within one px of it."""
    landing = np.arange(len(row)) - row
    if not np.isfinite(row[x]) or landing[x] < 0:
        return False
    nearer = np.abs(landing - landing[x]) < 1
    return not (nearer & (row > row[x] + 1)).any()
