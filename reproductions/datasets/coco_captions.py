"""The captions of MS-COCO: every image is a class of its own, and its captions are the texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import read_json
from reproductions.datasets.coco import LICENCE, SOURCE
from reproductions.datasets.labelled_images import LabelledImages, OnDisk
from reproductions.datasets.multi_label import data_folder, located

FOLDERS = ("coco", "COCO", "coco2017", "COCO2017", "mscoco_2017")
FILE = "annotations/captions_val2017.json"
COUNT = 5000
EXPECTED = "captions {images, annotations} are expected"


def load_coco_captions(root: Path) -> LabelledImages:
    """The 5,000 images of val2017 in the order of their ids, with all captions of each, about five.

    Raises:
        UserError: the data set is not there, an image or a caption is missing, or the file has another form.
    """
    folder = data_folder(root, FOLDERS, FILE, "captions of MS-COCO 2017")
    path = folder / FILE
    content = read_json(path, EXPECTED)
    try:
        files = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        pairs = [(int(a["image_id"]), str(a["caption"])) for a in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has not the form of COCO's captions ({error!r}): {EXPECTED}") from error
    captions: dict[int, list[str]] = {image: [] for image in sorted(files)}
    for image, caption in pairs:
        if image not in captions:
            raise UserError(f"{path} has a caption of the image {image}, but does not list it: copy the file again")
        captions[image].append(caption)
    if not captions or not all(captions.values()):
        which = next((f"the image {files[image]}" for image, found in captions.items() if not found), "any image")
        raise UserError(f"{path} has no caption of {which}: copy the file again")
    paths = located([files[image] for image in captions], (folder / "val2017", folder), path)
    return LabelledImages(
        name="coco_captions",
        title="MS-COCO val2017, captions",
        tier="paper" if len(paths) == COUNT else "local",
        images=OnDisk(folder, tuple(p.relative_to(folder).as_posix() for p in paths)),
        labels=np.arange(len(paths)),
        classes=tuple(Path(files[image]).stem for image in captions),
        texts=tuple(tuple(found) for found in captions.values()),
        licence=LICENCE,
        source=SOURCE,
    )
