"""ImageNet-100: the images for validation of 100 classes of ImageNet, each class with its definition."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from reproductions import UserError
from reproductions.datasets.annotations import read_lines
from reproductions.datasets.files import folder_or_zip, open_tree
from reproductions.datasets.labelled_images import LabelledImages, from_members, images_by_class

LICENCE = "ImageNet terms of access (non-commercial research and education)"
SOURCE = "O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015; 100 classes of IN100.txt"
FOLDERS = ("imagenet100", "imagenet-100", "ImageNet-100")
LIST, DEFINITIONS = "IN100.txt", "IN100_definitions.txt"
CLASSES, COUNT = 100, 5000
RELEASED_TEXTS = "b6f82a3fe72b599aee0f8c057554a483"
"""``compact_md5`` of the definitions that were released with "It's a (Blind) Match!"."""
OWN_TEXTS = "the texts are not the definitions that were released"


def load_imagenet100(folder: Path) -> LabelledImages:
    """The 5,000 images, ``val/<wnid>/<image>``, of the wnids in ``IN100.txt``, in the order of wnids and names.

    Both that list and ``IN100_definitions.txt`` lie beside ``val`` or in the folder of data sets. The definitions are
    the texts, one line a class in the order of the wnids; without them, a text is WordNet's "name: definition".

    Raises:
        UserError: the data set or the list is not there, a class has no image, or there is not one definition a class.
    """
    place = next((p for name in FOLDERS if (p := folder_or_zip(folder, name)) is not None), None)
    if place is None:
        raise UserError(f"{folder} has no ImageNet-100: {FOLDERS[0]}/val/<wnid>/<image> is expected there")
    wnids = _wnids(_beside(place, folder, LIST) or place / LIST)
    with open_tree(place) as tree:
        found = images_by_class(tree, "val")
    if missing := [wnid for wnid in wnids if wnid not in found]:
        raise UserError(f"{place} has no image of the class {missing[0]} in its val split")
    images, labels = from_members(place, {wnid: found[wnid] for wnid in wnids})
    names, texts = _wordnet(wnids)
    if given := _beside(place, folder, DEFINITIONS):
        texts = read_lines(given, f"{CLASSES} definitions, one line a class, are expected")
        if len(texts) != CLASSES:
            raise UserError(f"{given} has {len(texts)} definitions, but one for each of {CLASSES} classes is expected")
    return LabelledImages(
        name="imagenet100",
        title="ImageNet-100",
        tier="paper" if len(images) == COUNT else "local",
        images=images,
        labels=labels,
        classes=tuple(names),
        texts=tuple((text,) for text in texts),
        licence=LICENCE,
        source=SOURCE,
        note="" if compact_md5(texts) == RELEASED_TEXTS else OWN_TEXTS,
    )


def compact_md5(texts: Sequence[str]) -> str:
    """MD5 of the texts as a JSON list without spaces: by which lists of texts are told apart."""
    content = json.dumps(list(texts), ensure_ascii=False, separators=(",", ":"))
    return hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()


def _beside(place: Path, folder: Path, name: str) -> Path | None:
    return next((path for path in (place / name, folder / name) if path.is_file()), None)


def _wnids(path: Path) -> list[str]:
    expected = f"the {CLASSES} wnids of ImageNet-100, one a line, are expected"
    wnids = sorted(set(read_lines(path, expected)))
    if odd := [wnid for wnid in wnids if not re.fullmatch(r"n\d{8}", wnid)]:
        raise UserError(f"{path} has the line {odd[0]!r}, which is no wnid: {expected} there")
    if len(wnids) != CLASSES:
        raise UserError(f"{path} has {len(wnids)} different wnids: {expected} there")
    return wnids


def _wordnet(wnids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each synset's first name, and that with its definition, as timm carries them."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    try:
        described = [info.label_name_to_description(wnid, detailed=True) for wnid in wnids]
    except KeyError as error:
        raise UserError(f"{LIST} has the wnid {error}, which is no class of ImageNet") from None
    names, definitions = zip(*(text.split(": ", 1) for text in described), strict=True)
    first = [name.split(",")[0] for name in names]
    return first, [f"{name}: {definition}" for name, definition in zip(first, definitions, strict=True)]
