"""Every data set the project knows: what it is, where it comes from, and what of it a folder holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reproductions.datasets import omniglot, pf_pascal, pf_willow, spair, tiny_imagenet, warped
from reproductions.datasets.few_shot import BENCHMARKS
from reproductions.datasets.files import ARCHIVES, first_folder, is_image, open_tree


@dataclass(frozen=True)
class Known:
    """A data set.

    Attributes:
        tier: "embedded", "paper" or "local".
        places: names of its folders and zips below the user's, with wildcards, by precedence; none when embedded.
    """

    title: str
    tier: str
    licence: str
    source: str
    places: tuple[str, ...] = ()

    def found(self, folder: Path) -> str:
        """Where it lies and how many images that has, by names alone; empty where it is not there."""
        for place in self.places:
            if paths := sorted(folder.glob(place)):
                return ", ".join(_described(path) for path in paths)
        archives = sorted(p for p in folder.iterdir() if p.suffix in ARCHIVES and first_folder(p) in self.places)
        return _described(archives[0]) if archives else ""


KNOWN = (
    Known("warped photographs", "embedded", warped.LICENCE, "scikit-image"),
    Known("stereo motorcycle", "embedded", warped.LICENCE, "D. Scharstein et al., Middlebury, 2014; scikit-image"),
    *(Known(b.title, "paper", b.licence, b.source, (b.folder,)) for b in BENCHMARKS.values()),
    Known("PF-WILLOW", "paper", pf_willow.LICENCE, pf_willow.SOURCE, ("PF-WILLOW", "PF-dataset-WILLOW")),
    Known("PF-PASCAL", "paper", pf_pascal.LICENCE, pf_pascal.SOURCE, ("PF-PASCAL",)),
    Known("SPair-71k", "paper", spair.LICENCE, spair.SOURCE, ("SPair-71k",)),
    Known(
        "TSS",
        "paper",
        "not known",
        "T. Taniai, S. N. Sinha, Y. Sato, Joint Recovery of Dense Correspondence and Cosegmentation, 2016",
        ("TSS",),
    ),
    Known(
        "Omniglot",
        "local",
        omniglot.LICENCE,
        omniglot.SOURCE,
        ("omniglot/images_background*", "images_background*"),
    ),
    Known(
        "Tiny-ImageNet",
        "local",
        tiny_imagenet.LICENCE,
        tiny_imagenet.SOURCE,
        ("tiny-imagenet-200", "tiny-imagenet-200.zip", "tinyimagenet200_*.zip"),
    ),
)


def _described(path: Path) -> str:
    if path.is_dir():
        return f"{path.name}, {sum(is_image(name) for *_, names in os.walk(path) for name in names)} images"
    if path.suffix != ".zip":
        return path.name  # counting would mean to unpack it
    with open_tree(path) as tree:
        return f"{path.name}, {sum(map(is_image, tree.names))} images"
