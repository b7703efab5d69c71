"""PatchCT's tables: transport between patches and labels beside pooling and attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from reproductions.experiment import Advance, Measured, Options, Row
from reproductions.multi_label.average_precision import mean_average_precision
from reproductions.multi_label.figures import draw_weights
from reproductions.multi_label.in_memory import side_by_side
from reproductions.multi_label.precision_recall import above, precision_recall
from reproductions.multi_label.real_images import SEEDS, Study, studies
from reproductions.patchct import official, real_images, scenes
from reproductions.patchct.method import Settings
from reproductions.patchct.scenes import METHODS, SWITCHES, TITLE

OWN = "in the boxes, own weights"
COLUMNS = {
    "mAP": "mean_average_precision",
    "OF1": "overall_f1",
    "CF1": "class_f1",
    OWN: "mass_inside",
    "in the boxes, similarity": "mass_inside",
}
SCENES, GAINS = "scenes", "scenes_gains"
GAINING, OTHERS = ("OT", "CT", "CT, backward only"), ("global pooling", "max pooling", "cross-attention")
DRAWN, DRAWN_SCENES = ("max pooling", "cross-attention", "OT", "CT"), 3


train = official.train


def rows(options: Options) -> list[Row]:
    """Every method and every switch on the scenes, what transport gains there, and the data sets in a folder."""
    test, found = scenes.scenes("test", options.seed), []
    row = partial(_row, tier="embedded", data=TITLE, data_hash=test.sha256)
    for table, methods in ((SCENES, METHODS), ("scenes_switches", SWITCHES)):
        for name, settings in methods.items():
            found += [row(table, name, settings, column, metric) for column, metric in COLUMNS.items()]
    for other in OTHERS:
        for name in GAINING:
            found.append(row(GAINS, name, METHODS[name], f"over {other}", "map_gain", less=other))
    for study in _studies(options):
        row = partial(_row, tier="local", data=study.title, data_hash=study.sha256)
        boxes = study.covered() is not None
        for name, settings in METHODS.items():
            for column, metric in COLUMNS.items():
                if metric != "mass_inside" or (column == OWN and boxes):
                    found.append(row(study.name, name, settings, column, metric))
    return found + official.rows(options)


def prepare(options: Options, advance: Advance) -> None:
    """Train every model that is not yet cached."""
    scenes.prepare(options, advance)
    tasks = {
        f"{study.title}, {name}, seed {seed}": partial(real_images.outcome, study, settings, seed, options)
        for study in _studies(options)
        for seed in range(options.seed, options.seed + SEEDS)
        for name, settings in METHODS.items()
    }
    side_by_side(tasks, advance)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number a seed; at full size, one of the test images."""
    if row.tier == "paper":
        return official.measure(row, options, advance)
    if row.tier == "local":
        return [_on_real_images(row, seed, options) for seed in range(options.seed, options.seed + SEEDS)]
    methods, samples = METHODS | SWITCHES, []
    for k in range(scenes.SEEDS):
        found = _value(row, methods[row.row], options.seed + k, options)
        if (other := row.settings.get("less")) is not None:
            found -= _value(row, methods[other], options.seed + k, options)
        samples.append(found)
        advance((k + 1) / scenes.SEEDS)
    return samples


def pictures(options: Options) -> dict[str, bytes]:
    """Where the labels of a few test scenes have their weights, method by method, as PNG."""
    test = scenes.scenes("test", options.seed)
    images = torch.from_numpy(test.images[:DRAWN_SCENES])
    weights = {name: scenes.outcome(METHODS[name], options.seed, options).model.weights(images) for name in DRAWN}
    shown = test.images[:DRAWN_SCENES], test.boxes[:DRAWN_SCENES], test.objects[:DRAWN_SCENES]
    return {"scenes_weights": draw_weights(*shown, test.classes, weights)}


def _studies(options: Options) -> list[Study]:
    """Those whose regions are patches; the tokens of Corel5k are none."""
    return [study for study in studies(options.data) if study.name == "coco256"]


def _value(row: Row, settings: Settings, seed: int, options: Options) -> float:
    found = scenes.outcome(settings, seed, options)
    if row.metric == "mass_inside":
        return float((found.own if row.column == OWN else found.similarity).nanmean())
    return _score(row.metric, found.scores, scenes.scenes("test", seed).labels)


def _on_real_images(row: Row, seed: int, options: Options) -> float:
    study = next(s for s in _studies(options) if s.name == row.table)
    found = real_images.outcome(study, METHODS[row.row], seed, options)
    if row.metric == "mass_inside":
        assert found.own is not None
        return float(found.own.nanmean())
    return _score(row.metric, found.scores, study.targets("test"))


def _score(metric: str, scores: Tensor, labels: NDArray) -> float:
    if metric in ("mean_average_precision", "map_gain"):
        return mean_average_precision(scores, labels)
    f1 = precision_recall(above(scores), labels)
    return f1.OF1 if metric == "overall_f1" else f1.CF1


def _row(
    table: str,
    name: str,
    settings: Settings,
    column: str,
    metric: str,
    tier: str,
    data: str,
    data_hash: str,
    **more: Any,
) -> Row:
    transport = settings.transport
    shown: dict[str, Any] = {"readout": settings.readout, "loss": settings.loss, "adaptive": settings.adaptive}
    solver = {"none": "none", "ct": "conditional_transport", "ot": "sinkhorn"}[transport.kind]
    if transport.kind != "none":
        shown |= {"labels": transport.label_set, "layers": len(transport.layers), "weight": transport.weight}
    if transport.kind == "ct":
        shown |= {"rho": transport.rho, "temperature": transport.temperature}
    if transport.kind == "ot":
        shown |= {"reg": transport.reg}
    return Row(table, name, column, metric, solver, {**shown, **more}, tier, data, data_hash)
