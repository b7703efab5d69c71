"""Every data set the project knows: what it is, where it comes from, and what of it a folder holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reproductions.datasets import (
    cifar,
    class_folders,
    class_vectors,
    coco,
    coco_captions,
    coco_yolo,
    colours,
    corel5k,
    imagenet100,
    nus_wide,
    omniglot,
    pedestrians,
    pf_pascal,
    pf_willow,
    remote_sensing,
    scenes,
    spair,
    tiny_imagenet,
    visual_genome,
    voc2007,
    warped,
)
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
    Known("scenes of digits, grey and coloured", "embedded", scenes.LICENCE, scenes.SOURCE),
    Known("colours and their names", "embedded", colours.LICENCE, colours.SOURCE),
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
    Known("MS-COCO 2014", "paper", coco.LICENCE, coco.OPEN_SOURCE, coco.FOLDERS),
    Known("PASCAL VOC 2007", "paper", voc2007.LICENCE, voc2007.SOURCE, voc2007.FOLDERS),
    Known("NUS-WIDE", "paper", nus_wide.LICENCE, nus_wide.OPEN_SOURCE, nus_wide.FOLDERS),
    Known("VG-500", "paper", visual_genome.LICENCE, visual_genome.SOURCE, visual_genome.FOLDERS),
    Known("RAPv1", "paper", pedestrians.RAP_LICENCE, pedestrians.RAP_SOURCE, pedestrians.RAP_FOLDERS),
    Known("PA-100K", "paper", pedestrians.PA100K_LICENCE, pedestrians.PA100K_SOURCE, pedestrians.PA100K_FOLDERS),
    Known(
        "MultiScene",
        "paper",
        remote_sensing.MULTISCENE_LICENCE,
        remote_sensing.MULTISCENE_SOURCE,
        remote_sensing.MULTISCENE_FOLDERS,
    ),
    Known("MLRSNet", "paper", remote_sensing.MLRSNET_LICENCE, remote_sensing.MLRSNET_SOURCE, ("MLRSNet",)),
    *(Known(c.title, "paper", cifar.LICENCE, cifar.SOURCE, c.places) for c in cifar.LAYOUTS.values()),
    Known(
        "CINIC-10", "paper", class_folders.CINIC10_LICENCE, class_folders.CINIC10_SOURCE, class_folders.CINIC10_FOLDERS
    ),
    Known("ImageNet-100", "paper", imagenet100.LICENCE, imagenet100.SOURCE, imagenet100.FOLDERS),
    Known("MS-COCO 2017, captions", "paper", coco.LICENCE, coco.SOURCE, coco_captions.FOLDERS),
    Known("COCO with YOLO labels", "local", coco.LICENCE, coco.SOURCE, coco_yolo.PLACES),
    Known("COCO's patch features", "local", coco.LICENCE, coco.SOURCE, (coco_yolo.PATCHES,)),
    *(
        Known(f"{title}'s class vectors", "local", class_vectors.LICENCE, class_vectors.SOURCE, (place,))
        for title, place in class_vectors.PLACES.items()
    ),
    Known("CIFAR-10H", "local", class_vectors.HUMAN_LICENCE, class_vectors.HUMAN_SOURCE, (class_vectors.HUMAN,)),
    Known("Corel5k", "local", corel5k.LICENCE, corel5k.SOURCE, corel5k.FOLDERS),
)


def _described(path: Path) -> str:
    if path.is_dir():
        count = sum(is_image(name) for *_, names in os.walk(path) for name in names)
        return f"{path.name}, {count} images" if count else path.name  # some sets are features alone
    if path.suffix != ".zip":
        return path.name  # counting would mean to unpack it
    with open_tree(path) as tree:
        return f"{path.name}, {sum(map(is_image, tree.names))} images"
