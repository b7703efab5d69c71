"""PatchCT's tables: transport between patches and labels beside pooling and attention."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reproductions.experiment import Advance, Measured, Options, Row
from reproductions.multi_label.average_precision import mean_average_precision
from reproductions.multi_label.figures import draw_weights
from reproductions.multi_label.precision_recall import above, precision_recall
from reproductions.patchct import official, scenes
from reproductions.patchct.method import Settings
from reproductions.patchct.scenes import METHODS, SWITCHES, TITLE

COLUMNS = {
    "mAP": "mean_average_precision",
    "OF1": "overall_f1",
    "CF1": "class_f1",
    "in the boxes, own weights": "mass_inside",
    "in the boxes, similarity": "mass_inside",
}
GAINS = "scenes_gains"
OTHERS = "global pooling", "max pooling", "cross-attention"
DRAWN, DRAWN_SCENES = ("max pooling", "cross-attention", "OT", "CT"), 3


train = official.train


def rows(options: Options) -> list[Row]:
    """Every method and every switch on the scenes, what transport gains over pooling and attention, and full size."""
    data_hash = scenes.scenes("test", options.seed).sha256

    def row(table: str, name: str, column: str, metric: str, settings: dict[str, object], solver: str) -> Row:
        return Row(table, name, column, metric, solver, settings, "embedded", TITLE, data_hash)

    found = []
    for table, methods in (("scenes", METHODS), ("scenes_switches", SWITCHES)):
        for name, settings in methods.items():
            solver, shown = _recorded(settings)
            found += [row(table, name, column, metric, shown, solver) for column, metric in COLUMNS.items()]
    for other in OTHERS:
        for name in ("OT", "CT", "CT, backward only"):
            solver, shown = _recorded(METHODS[name])
            found.append(row(GAINS, name, f"over {other}", "map_gain", {**shown, "less": other}, solver))
    return found + official.rows(options)


def prepare(options: Options, advance: Advance) -> None:
    """Train every model of the scenes."""
    scenes.prepare(options, advance)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number a seed; at full size, one of the test images."""
    if row.tier == "paper":
        return official.measure(row, options, advance)
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


def _value(row: Row, settings: Settings, seed: int, options: Options) -> float:
    found = scenes.outcome(settings, seed, options)
    if row.metric == "mass_inside":
        inside = found.own if row.column.endswith("own weights") else found.similarity
        return float(inside.nanmean())
    labels = scenes.scenes("test", seed).labels
    if row.metric in ("mean_average_precision", "map_gain"):
        return mean_average_precision(found.scores, labels)
    f1 = precision_recall(above(found.scores), labels)
    return f1.OF1 if row.metric == "overall_f1" else f1.CF1


def _recorded(settings: Settings) -> tuple[str, dict[str, object]]:
    """The solver, and the settings that say what a row is."""
    transport = settings.transport
    shown: dict[str, object] = {"readout": settings.readout, "loss": settings.loss, "adaptive": settings.adaptive}
    if transport.kind == "none":
        return "none", shown
    shown |= {"labels": transport.label_set, "layers": len(transport.layers), "weight": transport.weight}
    if transport.kind == "ot":
        return "sinkhorn", shown | {"reg": transport.reg}
    return "conditional_transport", shown | {"rho": transport.rho, "temperature": transport.temperature}
