"""Images as SCOT takes them: read when they are asked for, and turned into hyperpixels once while they are near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from reproductions.datasets.correspondence import read_image
from reproductions.scot.backbones import Backbone
from reproductions.scot.descriptors import daisy_cells
from reproductions.scot.hyperpixels import Masses, hyperpixels
from reproductions.scot.images import SIDE
from reproductions.scot.method import Hyperpixels

IMAGES = 24  # whose hyperpixels are kept: pairs come by category


@dataclass(frozen=True)
class View:
    """One image of a pair; views of the same key are the same.

    Attributes:
        key: what tells it from the other images.
        pixels: reads it, ``(H, W, 3)`` of bytes.
        mask: reads its foreground map, ``(H, W)`` of bytes; None where it has none.
    """

    key: str
    pixels: Callable[[], np.ndarray] = field(compare=False)
    mask: Callable[[], np.ndarray] | None = field(default=None, compare=False)

    @classmethod
    def of_file(cls, path: Path, mirrored: bool = False, mask: Path | None = None) -> View:
        """The image of a file, and the map of another; both mirrored where asked."""

        def turned(x: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(x[:, ::-1]) if mirrored else x

        return cls(
            f"{path}{' mirrored' if mirrored else ''}",
            lambda: turned(read_image(path)),
            None if mask is None else lambda: turned(read_image(mask, "L")),
        )


def cells_of(
    view: View, backbone: Backbone | None, masses: Masses = "uniform", side: int = SIDE
) -> tuple[Hyperpixels, float]:
    """The hyperpixels of a view, DAISY descriptors without a network, and the ratio by which it was resized."""
    return _descriptors(view, side) if backbone is None else _hyperpixels(view, backbone, masses, side)


@lru_cache(maxsize=IMAGES)
def _hyperpixels(view: View, backbone: Backbone, masses: Masses, side: int) -> tuple[Hyperpixels, float]:
    mask = view.mask() if masses == "mask" and view.mask is not None else None
    return hyperpixels(backbone, view.pixels(), masses, mask, side)


@lru_cache(maxsize=10 * IMAGES)  # these are small
def _descriptors(view: View, side: int) -> tuple[Hyperpixels, float]:
    return daisy_cells(view.pixels(), side)
