"""What SCOT is measured on: pairs of images with keypoints, embedded or in a folder of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from reproductions.datasets.correspondence import KeypointPairs
from reproductions.datasets.files import unpacked
from reproductions.datasets.pf_pascal import load_pf_pascal
from reproductions.datasets.pf_willow import load_pf_willow
from reproductions.datasets.spair import load_spair
from reproductions.datasets.warped import ImagePair, load_stereo_motorcycle, load_warped_photographs
from reproductions.scot.views import View
from reproductions.storage import content_hash


@dataclass(frozen=True, eq=False)
class Pair:
    """Two views, the keypoints of both ``(K, 2)``, τ in pixels of the target, and the class of the object."""

    source: View
    target: View
    source_keypoints: np.ndarray
    target_keypoints: np.ndarray
    threshold: float
    category: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """A data set.

    Attributes:
        name, title: "pf_willow", "PF-WILLOW"; the title is what claims name.
        convention: what τ is the size of, as in the columns of the claims.
        masks: whether its images have stored foreground maps.
    """

    name: str
    title: str
    tier: str
    convention: str
    pairs: tuple[Pair, ...]
    sha256: str
    masks: bool = False

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({p.category for p in self.pairs}))


def all_sources(data: Path | None, storage: Path) -> tuple[Source, ...]:
    """The embedded pairs, and what a folder of the user's holds."""
    return embedded() if data is None else (*embedded(), *on_disk(data, storage))


@cache
def embedded() -> tuple[Source, ...]:
    """Photographs of scikit-image under known warps, and its stereo pair."""
    warped, stereo = load_warped_photographs(), load_stereo_motorcycle()
    return (
        _in_memory("warped_photographs", "warped photographs", warped),
        _in_memory("stereo_motorcycle", "stereo motorcycle", [stereo]),
    )


@cache
def on_disk(data: Path, storage: Path) -> tuple[Source, ...]:
    """The paper's data sets that a folder holds; archives in it are unpacked into ``storage``.

    Raises:
        UserError: a data set that is there, but not as expected.
    """
    found = []
    if (root := unpacked(data, ("PF-WILLOW", "PF-dataset-WILLOW"), storage)) is not None:
        masks = root / "PF-WILLOW-FCN"
        found.append(_from_files(load_pf_willow(root, masks if masks.is_dir() else None), "keypoints"))
    if (root := unpacked(data, ("PF-PASCAL",), storage)) is not None:
        masks = root / "PF-PASCAL-FCN"
        found.append(_from_files(load_pf_pascal(root, "test", masks if masks.is_dir() else None), "image"))
    if (root := unpacked(data, ("SPair-71k",), storage)) is not None:
        found.append(_from_files(load_spair(root, "test"), "box"))
    return tuple(found)


def _in_memory(name: str, title: str, pairs: Sequence[ImagePair]) -> Source:
    def view(pair: ImagePair, side: str, image: np.ndarray) -> View:
        return View(f"{name}/{pair.name}/{side}", lambda: image)

    made = [
        Pair(
            view(p, "source", p.source),
            view(p, "target", p.target),
            p.source_keypoints,
            p.target_keypoints,
            p.threshold,
        )
        for p in pairs
    ]
    arrays = [x for p in pairs for x in (p.source, p.target, p.source_keypoints, p.target_keypoints)]
    return Source(name, title, "embedded", "image", tuple(made), content_hash(*arrays))


def _from_files(given: KeypointPairs, convention: str) -> Source:
    pairs = [
        Pair(
            View.of_file(p.source, p.flip, p.source_mask),
            View.of_file(p.target, p.flip, p.target_mask),
            p.source_keypoints,
            p.target_keypoints,
            p.threshold,
            p.category,
        )
        for p in given.pairs
    ]
    masks = all(p.source_mask is not None and p.target_mask is not None for p in given.pairs)
    return Source(given.name, given.title, "paper", convention, tuple(pairs), given.sha256, masks)
