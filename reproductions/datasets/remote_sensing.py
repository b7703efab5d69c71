"""Scenes seen from the air: MultiScene and MLRSNet, whose labels are the columns of csv files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reproductions import UserError
from reproductions.datasets.annotations import check_split, read_rows
from reproductions.datasets.multi_label import MultiLabelImages, check_unique, data_folder, located

MULTISCENE_LICENCE = "MIT (annotations); Google Earth terms (images)"
MULTISCENE_SOURCE = "Y. Hua et al., MultiScene: A Large-Scale Dataset and Benchmark for Multi-Scene Recognition, 2021"
MULTISCENE_FOLDERS = ("MultiScene", "MultiScene-Clean")
MULTISCENE_LISTS = {"train": "Tra.csv", "test": "Test.csv"}
MULTISCENE_CLASSES = 36
MLRSNET_LICENCE = "not known"
MLRSNET_SOURCE = "X. Qi et al., MLRSNet: A Multi-Label High Spatial Resolution Remote Sensing Dataset, 2020"
MLRSNET_CLASSES = 60
TRAINING = 0.8
EXPECTED = "a header (image, then the labels) and a row of 0 and 1 for each image are expected"


def load_multiscene(root: Path, split: str, *, clean: bool = True) -> MultiLabelImages:
    """MultiScene-Clean, train and test of 7,000 images each, or all of MultiScene with its noisy labels; 36 classes.

    Reads ``MultiScene-Clean/{Tra,Test}.csv`` and ``MultiScene-Clean/images/*.jpg``, or the same in ``MultiScene``. The
    names of the classes are those of the csv header, spelt as there.

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    title = "MultiScene-Clean" if clean else "MultiScene"
    check_split(split, tuple(MULTISCENE_LISTS), title)
    folder = data_folder(root, (title, f"MultiScene/{title}"), MULTISCENE_LISTS[split], title)
    listing = folder / MULTISCENE_LISTS[split]
    names, classes, targets = _table(listing, MULTISCENE_CLASSES)
    files = [name if name.endswith(".jpg") else f"{name}.jpg" for name in names]
    return MultiLabelImages(
        name="multiscene_clean" if clean else "multiscene",
        title=title,
        split=split,
        tier="paper",
        paths=located(files, (folder / "images",), listing),
        targets=targets,
        classes=classes,
        licence=MULTISCENE_LICENCE,
        source=MULTISCENE_SOURCE,
    )


def load_mlrsnet(root: Path, split: str) -> MultiLabelImages:
    """MLRSNet, 109,161 images of 46 categories with 60 labels, which are sorted by name.

    Reads ``Labels/<category>.csv`` (also ``labels/``) and ``Images/<category>/<category>_<number>.jpg``. The files have
    their columns in different orders: read by position, labels such as island and intersection would be mixed up.
    There is no official split; here, as others do, the first 80 % of the rows of each category are for training. That
    is not the random split of RAM, which exists as JSON lists only (see ``ram_json``), so the tier is "local".

    Raises:
        UserError: an unknown split, or a file that is missing or not as expected.
    """
    check_split(split, ("train", "test"), "MLRSNet")
    folder = data_folder(root, ("MLRSNet",), "Images", "MLRSNet")
    labels = next((place for name in ("Labels", "labels") if (place := folder / name).is_dir()), folder / "Labels")
    tables = sorted(labels.glob("*.csv"))
    if not tables:
        raise UserError(f"{folder} has no labels: Labels/<category>.csv is expected in it")
    paths: list[Path] = []
    parts: list[np.ndarray] = []
    known: tuple[str, ...] = ()
    for table in tables:
        names, columns, targets = _table(table, MLRSNET_CLASSES)
        classes = tuple(sorted(columns))
        if known and classes != known:
            strange = sorted(set(classes) ^ set(known))[0]
            raise UserError(f"{table} and {tables[0]} have not the same labels: {strange!r} is in one of them only")
        known = classes
        training = int(TRAINING * len(names))
        rows = slice(training) if split == "train" else slice(training, None)
        files = [f"{name.rpartition('_')[0]}/{name}" for name in names[rows]]
        paths += located(files, (folder / "Images", folder / "Images" / table.stem), table)
        parts.append(targets[rows][:, [columns.index(name) for name in classes]])
    return MultiLabelImages(
        name="mlrsnet",
        title="MLRSNet",
        split=split,
        tier="local",
        paths=tuple(paths),
        targets=np.concatenate(parts),
        classes=known,
        licence=MLRSNET_LICENCE,
        source=MLRSNET_SOURCE,
    )


def _table(path: Path, count: int) -> tuple[list[str], tuple[str, ...], np.ndarray]:
    """Image names, label names and targets int8 ``(n, count)`` of a csv file."""
    header, rows = read_rows(path, EXPECTED)
    classes = tuple(header[1:])
    check_unique(classes, f"the header of {path}")
    if len(classes) != count:
        raise UserError(f"{path} has {len(classes)} label columns where {count} are expected")
    values = np.array([row[1:] for row in rows])
    if not np.isin(values, ("0", "1", "0.0", "1.0")).all():
        raise UserError(f"{path} has a label that is neither 0 nor 1: {EXPECTED}")
    return [row[0] for row in rows], classes, np.isin(values, ("1", "1.0")).astype(np.int8)
