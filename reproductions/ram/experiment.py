"""RAM's tables: transport between regions and labels beside pooling and attention, on seen and unseen labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reproductions.experiment import Advance, Measured, Options, Row
from reproductions.multi_label.average_precision import mean_average_precision
from reproductions.multi_label.figures import draw_weights
from reproductions.multi_label.in_memory import side_by_side
from reproductions.multi_label.precision_recall import precision_recall, top
from reproductions.multi_label.real_images import SEEDS, studies
from reproductions.ram import official, real_images
from reproductions.ram import scenes as embedded
from reproductions.ram.settings import RamSettings

SCENES, GAINS = "scenes", "scenes_gains"
INSIDE = "in the boxes"
GAINING, OTHERS = ("CT", "OT", "KCOT", "KCOT, teacher (RAM)"), ("pooling", "attention")
DRAWN, DRAWN_SCENES = ("max", "attention", "CT", "OT", "KCOT, teacher (RAM)"), 3
SOLVERS = {"ct": "conditional_transport", "ot": "sinkhorn", "kcot": "sinkhorn"}


train = official.train


def rows(options: Options) -> list[Row]:
    """The matchings on the scenes, what transport gains there, and the data sets in a folder, small or whole."""
    data_hash = embedded.scenes("test", options.seed).sha256
    found = []
    for name, settings in embedded.METHODS.items():
        row = partial(_row, SCENES, name, settings, "embedded", embedded.TITLE, data_hash)
        for setting in embedded.CANDIDATES:
            found += [row(f"{setting} mAP", "mean_average_precision"), row(f"{setting} F1@3", "f1_at_k", k=3)]
        found.append(row(INSIDE, "mass_inside"))
    for name in GAINING:
        row = partial(_row, GAINS, name, embedded.METHODS[name], "embedded", embedded.TITLE, data_hash)
        for other in OTHERS:
            found += [row(f"{setting} mAP, over {other}", "map_gain", less=other) for setting in embedded.CANDIDATES]
    for study in studies(options.data):
        boxes = study.covered() is not None
        for name in real_images.METHODS:
            settings = real_images.settings_of(study, name)
            row = partial(_row, study.name, name, settings, "local", study.title, study.sha256)
            for setting in study.candidates:
                found.append(row(f"{setting} mAP", "mean_average_precision"))
                found.append(row(f"{setting} F1@{study.predicted}", "f1_at_k", k=study.predicted))
            if boxes:
                found.append(row(INSIDE, "mass_inside"))
    return found + official.rows(options)


def prepare(options: Options, advance: Advance) -> None:
    """Train every model that is not yet cached."""
    embedded.prepare(options, advance)
    tasks = {
        f"{study.title}, {name}, seed {seed}": partial(real_images.outcome, study, name, seed, options)
        for study in studies(options.data)
        for seed in _seeds(SEEDS, options)
        for name in real_images.METHODS
    }
    side_by_side(tasks, advance)


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Measured:
    """One number a seed; at full size, one of the test images."""
    if row.tier == "paper":
        return official.measure(row, options, advance)
    if row.table in (SCENES, GAINS):
        return [_of_scenes(row, seed, options) for seed in _seeds(embedded.SEEDS, options)]
    study = next(s for s in studies(options.data) if s.name == row.table)
    samples = []
    for seed in _seeds(SEEDS, options):
        found = real_images.outcome(study, row.row, seed, options)
        if row.metric == "mass_inside":
            assert found.inside is not None
            samples.append(float(found.inside.nanmean()))
            continue
        setting = row.column.rpartition(" ")[0]
        ranked = study.targets("test")[:, study.candidates[setting]]
        samples.append(_score(row, found.scores[setting].numpy(), ranked))
    return samples


def pictures(options: Options) -> dict[str, bytes]:
    """Where the labels of a few test scenes have their share of the plan, method by method, as PNG."""
    test = embedded.scenes("test", options.seed)
    tokens = embedded.tokens(options.seed, options)["test"][:DRAWN_SCENES]
    place = np.argsort(embedded.ORDER)  # from columns in the order of the scores to classes
    weights = {
        name: embedded.outcome(embedded.METHODS[name], options.seed, options).model.weights(tokens)[..., place]
        for name in DRAWN
    }
    shown = test.images[:DRAWN_SCENES], test.boxes[:DRAWN_SCENES], test.objects[:DRAWN_SCENES]
    return {"scenes_weights": draw_weights(*shown, test.classes, weights)}


def _of_scenes(row: Row, seed: int, options: Options) -> float:
    found = embedded.outcome(embedded.METHODS[row.row], seed, options)
    if row.metric == "mass_inside":
        return float(found.inside.nanmean())
    setting = row.column.split()[0]
    chosen = embedded.CANDIDATES[setting]
    present = embedded.labels("test", seed)[:, chosen]
    some = present.any(1)  # as published: an image without a candidate is not tested

    def score(of: embedded.Outcome) -> float:
        return _score(row, of.scores[setting].numpy()[some], present[some])

    if (other := row.settings.get("less")) is None:
        return score(found)
    return score(found) - score(embedded.outcome(embedded.METHODS[other], seed, options))


def _score(row: Row, scores: NDArray, present: NDArray) -> float:
    if row.metric == "f1_at_k":
        return precision_recall(top(scores, row.settings["k"]), present).OF1
    return mean_average_precision(scores, present)


def _seeds(count: int, options: Options) -> range:
    return range(options.seed, options.seed + count)


def _row(
    table: str,
    name: str,
    settings: RamSettings,
    tier: str,
    data: str,
    data_hash: str,
    column: str,
    metric: str,
    **more: Any,
) -> Row:
    kept: dict[str, Any] = {"matching": settings.matching, "teacher": settings.teacher, "adapter": settings.adapter}
    if settings.matching in ("ot", "kcot"):
        kept |= {"reg": settings.kcot.reg, "prior_weight": settings.kcot.prior_weight if settings.teacher else 0.0}
    solver = SOLVERS.get(settings.matching, "none")
    return Row(table, name, column, metric, solver, {**kept, **more}, tier, data, data_hash)
