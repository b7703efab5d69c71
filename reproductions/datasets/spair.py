"""SPair-71k: pairs of photographs of 18 classes with annotated boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, existing
from reproductions.datasets.correspondence import (
    KeypointPair,
    KeypointPairs,
    check_inside,
    extent,
    mask_file,
)

SPLITS = ("trn", "val", "test")
LICENCE = "PASCAL 3D+ and PASCAL VOC images (Flickr terms); annotations for academic use"
SOURCE = "J. Min, J. Lee, J. Ponce, M. Cho, SPair-71k: A Large-scale Benchmark for Semantic Correspondence, 2019"


def load_spair(root: Path, split: str = "test", masks: Path | None = None) -> KeypointPairs:
    """The pairs that ``root/SPair-71k/Layout/large`` lists; ``masks`` is a folder of ``<class>/<image>.jpg``.

    τ is the longer side of the annotated target box.

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    check_split(split, SPLITS, "SPair-71k")
    folder = root / "SPair-71k"
    layout = folder / "Layout" / "large" / f"{split}.txt"
    lines = existing(layout, "the list of pairs").read_text().split()
    if not lines:
        raise UserError(f"{layout} lists no pairs: <pair>-<source>-<target>:<class> is expected a line")
    return KeypointPairs(
        name="spair",
        title="SPair-71k",
        split=split,
        tier="paper",
        pairs=tuple(_pair(folder, split, layout, line, masks) for line in lines),
        convention="box",
        licence=LICENCE,
        source=SOURCE,
    )


def _pair(folder: Path, split: str, layout: Path, line: str, masks: Path | None) -> KeypointPair:
    names, _, category = line.partition(":")
    parts = names.split("-")
    if len(parts) != 3 or not category:
        raise UserError(f"{layout} has the line {line!r} where <pair>-<source>-<target>:<class> is expected")
    annotation = folder / "PairAnnotation" / split / f"{line}.json"
    try:
        content = json.loads(existing(annotation, "an annotation").read_text())
        source_points, target_points = (np.array(content[k], dtype=np.float64) for k in ("src_kps", "trg_kps"))
        box = np.array(content["trg_bndbox"], dtype=np.float64).reshape(2, 2)
    except KeyError as error:
        raise UserError(f"the annotation {annotation} lacks {error.args[0]}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"the annotation {annotation} cannot be read ({error}): copy it again") from error
    if source_points.shape != target_points.shape or source_points.ndim != 2 or source_points.shape[1] != 2:
        shapes = f"{source_points.shape} and {target_points.shape}"
        raise UserError(f"the keypoints of {annotation} have shapes {shapes} where (K, 2) is expected twice")
    source, target = (folder / "JPEGImages" / category / f"{name}.jpg" for name in parts[1:])
    check_inside(source_points, source, annotation)
    check_inside(target_points, target, annotation)
    return KeypointPair(
        source=source,
        target=target,
        source_keypoints=source_points,
        target_keypoints=target_points,
        category=category,
        threshold=extent(box),
        source_mask=mask_file(masks, f"{category}/{source.name}"),
        target_mask=mask_file(masks, f"{category}/{target.name}"),
    )
