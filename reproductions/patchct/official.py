"""PatchCT at full size: MS-COCO 2014, PASCAL VOC 2007 and NUS-WIDE, at 448 px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from reproductions.datasets import coco, nus_wide, voc2007
from reproductions.features.clip import Clip
from reproductions.features.text_features import text_features
from reproductions.multi_label.full_size import Column, DataSet, FullSize
from reproductions.patchct.clip_encoder import ClipEncoder, layer_positions
from reproductions.patchct.method import PatchCT, Settings
from reproductions.storage import Cache

MAP = {"convention": "non-interpolated", "absent": "left out"}  # as ML-GCN; which one is published is not known
ALL, TOP = {"threshold": 0.5}, {"threshold": 0.5, "k": 3}


def make(clip: Clip, names: Sequence[str], settings: Settings, cache: Cache, seed: int) -> PatchCT:
    """PatchCT on CLIP's towers: the label embeddings are the text tower's of "A photo of a {LABEL}."."""
    blocks, layers = layer_positions(settings.transport.layers, len(clip.blocks))
    settings = replace(settings, transport=replace(settings.transport, layers=layers))
    labels = F.normalize(text_features(clip, names, cache=cache), dim=-1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchCT(ClipEncoder(clip, blocks), labels, settings)


def columns(split: str) -> tuple[Column, ...]:
    """mAP, and the F1 scores of all labels above the threshold and of the three best of those."""
    return (
        Column("mAP", "mean_average_precision", split, MAP),
        Column("OF1", "overall_f1", split, ALL),
        Column("CF1", "class_f1", split, ALL),
        Column("OF1, top 3", "overall_f1", split, TOP),
        Column("CF1, top 3", "class_f1", split, TOP),
    )


FULL = FullSize(
    paper="patchct",
    method="PatchCT",
    solver="conditional_transport",
    settings=Settings,
    make=make,
    data_sets=(
        DataSet(
            name="coco2014_448",
            title="MS-COCO 2014",
            folders=coco.FOLDERS,
            inside=("annotations/instances_train2014.json",),
            load=coco.load_coco,
            columns=columns("val"),
        ),
        DataSet(
            name="voc2007_448",
            title="PASCAL VOC 2007",
            folders=voc2007.FOLDERS,
            inside=("ImageSets/Main/trainval.txt",),
            load=voc2007.load_voc2007,
            columns=columns("test"),
        ),
        DataSet(
            name="nus_wide_448",
            title="NUS-WIDE-81",
            folders=nus_wide.FOLDERS,
            inside=("ImageList/TrainImagelist.txt",),
            load=nus_wide.load_nus_wide,
            columns=columns("test"),
        ),
    ),
    configurations=Path(__file__).parent / "configs",
)
rows, measure, train = FULL.rows, FULL.measure, FULL.train
