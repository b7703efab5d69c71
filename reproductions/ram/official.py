"""RAM at full size: MS-COCO 48/17 and NUS-WIDE 925/81, by RAM's own lists of images or by DualCoOp's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reproductions.datasets import coco, nus_wide
from reproductions.datasets.multi_label import MultiLabelImages, find_folder
from reproductions.datasets.ram_json import OPEN_SETS, RamImages, load_ram_open
from reproductions.features.clip import Clip
from reproductions.multi_label.full_size import Column, DataSet, FullSize
from reproductions.ram.model import RamModel
from reproductions.ram.settings import RamSettings
from reproductions.storage import Cache

MAP = {"convention": "non-interpolated", "absent": "left out"}  # which one is published is not known
DUALCOOP = {
    "coco": (coco.load_coco_open, f"annotations/{coco.OPEN['train'][0]}"),
    "nus_wide": (nus_wide.load_nus_wide_open, "annotations/zsl/cls_id.pickle"),
}
"""The same protocol in DualCoOp's layout: its loader, and a file by which the layout is known."""
COLUMNS = tuple(
    column
    for setting in ("ZSL", "GZSL")
    for column in (
        Column(f"{setting} mAP", "mean_average_precision", setting.lower(), MAP),
        Column(f"{setting} P@3", "precision_at_k", setting.lower(), {"k": 3}),
        *(Column(f"{setting} F1@{k}", "f1_at_k", setting.lower(), {"k": k}) for k in (3, 5)),
    )
)


def load(name: str, folder: Path, setting: str) -> MultiLabelImages:
    """The images of "coco" or "nus_wide", "train", "zsl" or "gzsl": RAM's lists where they are, else DualCoOp's.

    Raises:
        UserError: as the loaders.
    """
    if find_folder(folder, OPEN_SETS[name].folders, OPEN_SETS[name].file("train")):
        return load_ram_open(folder, name, setting)
    return DUALCOOP[name][0](folder, setting)


def make(clip: Clip, names: Sequence[str], settings: RamSettings, cache: Cache, seed: int) -> RamModel:
    """RAM whose candidates are these names: training and ZSL or GZSL tests are told apart by them alone."""
    model = RamModel(clip, names, settings=settings, cache=cache, seed=seed)
    model.candidates = "seen"
    return model


def differs(images: MultiLabelImages) -> str:
    """RAM's numbers are of its own lists, which are DualCoOp's after a further filter."""
    if isinstance(images, RamImages):
        return ""
    return f"measured on DualCoOp's list of {len(images)} images, published for RAM's own"


def _data_set(name: str, table: str) -> DataSet:
    return DataSet(
        name=table,
        title=OPEN_SETS[name].title,
        folders=OPEN_SETS[name].folders,
        inside=(OPEN_SETS[name].file("train"), DUALCOOP[name][1]),
        load=partial(load, name),
        columns=COLUMNS,
    )


FULL = FullSize(
    paper="ram",
    method="RAM",
    solver="sinkhorn",
    settings=RamSettings,
    make=make,
    data_sets=(_data_set("coco", "coco_48_17"), _data_set("nus_wide", "nus_925_81")),
    differs=differs,
    configurations=Path(__file__).parent / "configs",
)
rows, measure, train = FULL.rows, FULL.measure, FULL.train
