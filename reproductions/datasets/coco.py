"""MS-COCO 2014 as a multi-label data set, and the 48 seen and 17 unseen classes of its open-vocabulary protocol."""

from __future__ import annotations

from pathlib import Path

from reproductions import UserError
from reproductions.datasets.annotations import check_split, read_json
from reproductions.datasets.multi_label import MultiLabelImages, check_unique, data_folder, located, targets_of

LICENCE = "images: Flickr terms; annotations: CC BY 4.0"
SOURCE = "T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, 2014"
OPEN_SOURCE = f"{SOURCE}; split of A. Bansal et al., Zero-Shot Object Detection, 2018"
FOLDERS = ("coco", "COCO", "mscoco_2014", "COCO2014")
SETS = {"train": "train2014", "val": "val2014"}
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant"),
    *("bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard"),
    *("sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli"),
    *("carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""All 80, in the order of their category ids, which run from 1 to 90 with gaps."""
UNSEEN = (
    *("airplane", "bus", "cake", "cat", "couch", "cow", "cup", "dog", "elephant", "keyboard", "knife", "scissors"),
    *("sink", "skateboard", "snowboard", "tie", "umbrella"),
)
SEEN = (
    *("apple", "backpack", "banana", "bear", "bed", "bench", "bicycle", "bird", "boat", "book", "bottle", "bowl"),
    *("broccoli", "car", "carrot", "chair", "clock", "donut", "fork", "frisbee", "giraffe", "handbag", "horse"),
    *("kite", "laptop", "microwave", "motorcycle", "mouse", "orange", "oven", "person", "pizza", "refrigerator"),
    *("remote", "sandwich", "sheep", "skis", "spoon", "suitcase", "surfboard", "toaster", "toilet", "toothbrush"),
    *("train", "truck", "tv", "vase", "zebra"),
)
OPEN = {
    "train": ("instances_train2014_seen_48_17.json", "train2014", SEEN),
    "zsl": ("instances_val2014_unseen_48_17.json", "val2014", UNSEEN),
    "gzsl": ("instances_val2014_gzsi_48_17.json", "val2014", SEEN + UNSEEN),
}
"""For each setting its annotations, the folder of its images, and its candidate classes."""
EXPECTED = "detection annotations {images, annotations, categories} are expected"


def load_coco(root: Path, split: str) -> MultiLabelImages:
    """The train or val split: ``annotations/instances_<set>.json`` with the images in ``<set>/``, of 2014.

    A class is present where it has an annotation, of crowds too. Images without any annotation are left out, as is
    done by ML-Decoder and DualCoOp: 82,081 of 82,783 images remain for training and 40,137 of 40,504 for evaluation,
    which is on the val set. Images are in the order of the file.

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    check_split(split, tuple(SETS), "MS-COCO 2014")
    folder = data_folder(root, FOLDERS, "annotations", "MS-COCO 2014")
    annotations = folder / "annotations" / f"instances_{SETS[split]}.json"
    names, labels = _labelled(annotations, CLASSES)
    return MultiLabelImages(
        name="coco",
        title="MS-COCO 2014",
        split=split,
        tier="paper",
        paths=located(names, (folder / SETS[split], folder), annotations),
        targets=targets_of(labels, CLASSES, annotations),
        classes=CLASSES,
        licence=LICENCE,
        source=SOURCE,
    )


def load_coco_open(root: Path, setting: str) -> MultiLabelImages:
    """The open-vocabulary sets: "train" with the 48 seen classes, "zsl" with the 17 unseen ones, "gzsl" with both.

    Classes are alphabetical, the seen ones first. The files are ``annotations/instances_train2014_seen_48_17.json``,
    ``…val2014_unseen_48_17.json`` and ``…val2014_gzsi_48_17.json`` in COCO's own form; their categories are found by
    name. As published, 73,774 images are trained on and 6,608 tested on; the lists that RAM filtered further have 2,729
    (ZSL) and 6,392 (GZSL), see ``ram_json``. Images without any annotation are left out.

    Raises:
        UserError: an unknown setting, or a file that is missing or not as expected.
    """
    check_split(setting, tuple(OPEN), "open-vocabulary MS-COCO")
    file, images, classes = OPEN[setting]
    folder = data_folder(root, FOLDERS, "annotations", "MS-COCO 2014")
    annotations = folder / "annotations" / file
    names, labels = _labelled(annotations, classes)
    return MultiLabelImages(
        name=f"coco_open_{setting}",
        title=f"MS-COCO 48/17, {setting}",
        split="train" if setting == "train" else "test",
        tier="paper",
        paths=located(names, (folder / images, folder), annotations),
        targets=targets_of(labels, classes, annotations),
        classes=classes,
        licence=LICENCE,
        source=OPEN_SOURCE,
    )


def _labelled(path: Path, classes: tuple[str, ...]) -> tuple[list[str], list[set[str]]]:
    """File names and class names of the images that have some."""
    content = read_json(path, EXPECTED)
    try:
        category = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        files = {int(i["id"]): str(i["file_name"]) for i in content["images"]}
        pairs = [(int(a["image_id"]), int(a["category_id"])) for a in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has not the form of COCO's annotations ({error!r}): {EXPECTED}") from error
    check_unique(list(category.values()), f"the list of categories of {path}")
    if lacking := [name for name in classes if name not in category.values()]:
        raise UserError(
            f"{path} lacks the category {lacking[0]!r}: the {len(classes)} classes of the protocol are expected"
        )
    labels: dict[int, set[str]] = {}
    for image, number in pairs:
        if image not in files:
            raise UserError(f"{path} annotates the image {image}, but does not list it: copy the file again")
        if number not in category:
            raise UserError(f"{path} gives the image {files[image]} the unknown category {number}: copy the file again")
        labels.setdefault(image, set()).add(category[number])
    chosen = [image for image in files if image in labels]
    return [files[image] for image in chosen], [labels[image] for image in chosen]
