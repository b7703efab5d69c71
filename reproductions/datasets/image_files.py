"""Labelled images that stay on disk: what the large data sets are to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from reproductions.datasets.files import UNREADABLE, decode
from reproductions.storage import content_hash

INPUT_SIDE = 84
"""The side of the encoder's input: raw files are larger than this, files shrunk in advance are not."""
LOOKED_AT = 8


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled images on disk, each decoded when it is asked for.

    Attributes:
        split: "train", "val" or "test".
        tier: "paper" for the data a paper was measured on, "local" for a user's own.
        labels: int64 ``(n,)``, positions in ``classes``.
        raw: whether the official files have their original resolution, larger than the encoder's input.
    """

    name: str
    title: str
    split: str
    tier: str
    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    licence: str
    source: str
    raw: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, i: int) -> Image.Image:
        """Image ``i`` in RGB.

        Raises:
            UserError: the file is truncated or broken.
        """
        return decode(self.paths[i], str(self.paths[i]))

    @cached_property
    def sha256(self) -> str:
        """Hash of the listing: file names, file sizes, classes and labels, in order.

        The contents are gigabytes and are not read; a file changed without changing its size goes unnoticed.
        """
        listing = [(path.name, path.stat().st_size) for path in self.paths]
        return content_hash(listing, list(self.classes), self.labels)

    def check_raw_size(self) -> str | None:
        """A warning when the files look shrunk in advance, judged by a few of them spread over the split."""
        if not self.raw:
            return None
        chosen = {self.paths[i] for i in np.linspace(0, len(self) - 1, LOOKED_AT).astype(int)}
        if any(_longer_side(path) > INPUT_SIDE for path in chosen):
            return None
        return (
            f"the images of {self.title} in {self.paths[0].parent} are at most {INPUT_SIDE} px large, but the official"
            " ones have their original resolution: with images shrunk in advance DeepEMD's 1-shot accuracy on"
            " miniImageNet is about 57 % instead of 66 %"
        )


def _longer_side(path: Path) -> int:
    """Read from the file's header; 0 for a broken file, which ``load`` reports."""
    try:
        with Image.open(path) as image:
            return max(image.size)
    except UNREADABLE:
        return 0
