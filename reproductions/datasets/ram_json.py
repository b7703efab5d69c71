"""The annotation files that RAM publishes: JSON lists of images with their label names, for all of its six data sets.

A file is ``{"images": [[path, [label, …]], …], "classes": [name, …]}``. COCO's lists repeat a label for every instance:
here it counts once. Classes are numbered by RAM's rule, not by the file: the seen and the unseen ones each in
alphabetical order, and for GZSL first the seen, then the unseen, whatever the classes of the GZSL file are.

Paths are absolute ones of the authors' machine. They are found below the user's folders by the longest end of the path
that exists there (see ``multi_label.located``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproductions import UserError
from reproductions.datasets import coco, nus_wide
from reproductions.datasets.annotations import check_split, read_json
from reproductions.datasets.multi_label import MultiLabelImages, check_disjoint, data_folder, located, targets_of

EXPECTED = 'an object {"images": [[path, [label, ...]], ...], "classes": [name, ...]} is expected'


@dataclass(frozen=True, eq=False)
class RamImages(MultiLabelImages):
    """Images of a RAM file.

    Attributes:
        dropped: how many labels of images were left out because they are no candidate class, each once an image; an
            image can be left without labels so.
    """

    dropped: int = 0


@dataclass(frozen=True)
class OpenSet:
    """A data set with RAM's three files ``annotations/{train_<s>,test_<u>,test_<s+u>}_filtered.json``.

    Attributes:
        sizes: the numbers of seen and unseen classes.
        images: folders below the data set's that hold images in the official layout.
    """

    title: str
    folders: tuple[str, ...]
    sizes: tuple[int, int]
    images: tuple[str, ...]
    licence: str
    source: str

    def file(self, setting: str) -> str:
        seen, unseen = self.sizes
        return {
            "train": f"annotations/train_{seen}_filtered.json",
            "zsl": f"annotations/test_{unseen}_filtered.json",
            "gzsl": f"annotations/test_{seen + unseen}_filtered.json",
        }[setting]


OPEN_SETS = {
    "coco": OpenSet(
        "MS-COCO 48/17",
        coco.FOLDERS,
        (48, 17),
        ("train2014", "val2014"),
        coco.LICENCE,
        f"{coco.OPEN_SOURCE}; RAM, 2025",
    ),
    "nus_wide": OpenSet(
        "NUS-WIDE 925/81",
        nus_wide.FOLDERS,
        (925, 81),
        ("Flickr", "images"),
        nus_wide.LICENCE,
        f"{nus_wide.OPEN_SOURCE}; RAM, 2025",
    ),
}
SETTINGS = ("train", "zsl", "gzsl")


def load_ram_open(root: Path, name: str, setting: str) -> RamImages:
    """RAM's lists of "coco" or "nus_wide": "train" with the seen classes, "zsl" with the unseen, "gzsl" with both.

    COCO has 2,729 images in its ZSL list and 6,392 in its GZSL list. For NUS-WIDE the training list
    ``train_925_filtered.json`` is expected, which the repository long lacked.

    Raises:
        UserError: an unknown data set or setting, a file that is missing or not as expected, a class that is both seen
            and unseen, or other numbers of classes than the protocol's.
    """
    check_split(name, tuple(OPEN_SETS), "RAM's open-vocabulary protocol")
    facts = OPEN_SETS[name]
    check_split(setting, SETTINGS, facts.title)
    folder = data_folder(root, facts.folders, "annotations", facts.title)
    classes: list[tuple[str, ...]] = []
    for part, size in zip(SETTINGS, facts.sizes, strict=False):
        classes.append(_classes(_content(folder / facts.file(part))))
        if len(classes[-1]) != size:
            raise UserError(f"{folder / facts.file(part)} lists {len(classes[-1])} classes where {size} are expected")
    seen, unseen = classes
    check_disjoint(seen, unseen, str(folder / "annotations"))
    return load_ram_json(
        folder / facts.file(setting),
        (folder, *(folder / part for part in facts.images)),
        split="train" if setting == "train" else "test",
        classes={"train": seen, "zsl": unseen, "gzsl": seen + unseen}[setting],
        name=f"ram_{name}_{setting}",
        title=f"{facts.title}, RAM's {setting} list",
        licence=facts.licence,
        source=facts.source,
    )


def load_ram_json(
    path: Path,
    folders: Sequence[Path],
    *,
    split: str,
    name: str,
    title: str,
    licence: str,
    source: str,
    classes: Sequence[str] | None = None,
) -> RamImages:
    """Any RAM file, its images below ``folders``; ``classes`` are the candidates in their order.

    Without ``classes`` they are those of the file in alphabetical order. The files of RAPv1, PA-100K, MultiScene and
    MLRSNet all list the full class set: which are seen is not published, so the choice is ``classes``.

    Raises:
        UserError: the file is missing or not as expected, or an image is missing.
    """
    content = _content(path)
    candidates = _classes(content) if classes is None else tuple(classes)
    known = set(candidates)
    entries = _entries(content, path)
    labels = [set(found) for _, found in entries]
    return RamImages(
        name=name,
        title=title,
        split=split,
        tier="paper",
        paths=located([image for image, _ in entries], folders, path),
        targets=targets_of([found & known for found in labels], candidates, path),
        classes=candidates,
        licence=licence,
        source=source,
        dropped=sum(len(found - known) for found in labels),
    )


def _classes(content: dict[str, list]) -> tuple[str, ...]:
    return tuple(sorted(set(content["classes"])))


def _entries(content: dict[str, list], path: Path) -> list[tuple[str, list[str]]]:
    entries = content["images"]
    for k, entry in enumerate(entries):
        match entry:
            case [str(), [*names]] if all(isinstance(name, str) for name in names):
                continue
        raise UserError(f"image {k} of {path} is {str(entry)[:60]}: {EXPECTED}")
    return entries


def _content(path: Path) -> dict[str, list]:
    content = read_json(path, EXPECTED)
    match content:
        case {"images": [_, *_], "classes": [_, *_] as classes} if all(isinstance(name, str) for name in classes):
            return content
    raise UserError(f"{path} is not as it should be: {EXPECTED}, neither list empty")
