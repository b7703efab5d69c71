"""Rows of dense flow: TSS by subset and in all, each pair of images scored in both directions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from reproductions.datasets.files import unpacked
from reproductions.datasets.tss import SUBSETS, FlowPair, content, load_tss
from reproductions.experiment import Options, Row
from reproductions.scot.dense import THRESHOLD, evaluate_pair
from reproductions.scot.setups import Setup, setups, weights_in
from reproductions.storage import content_hash, source_hash

NAME, TITLE = "tss", "TSS"
STAGES = ("NN + RHM", "OT + RHM", "OT + CAM + RHM")
ALL = "all pairs"


def rows(options: Options) -> Iterator[Row]:
    """Where ``--data`` holds TSS: the stages of every network whose weights are there, by subset and in all."""
    pairs = _pairs(options)
    present = [name for name in SUBSETS if any(p.subset == name for p in pairs)]
    for setup in setups(options.data, NAME, STAGES) if pairs and options.data is not None else ():
        for subset in (*present, ALL):
            yield Row(
                table=NAME,
                row=setup.name,
                column=f"accuracy@{THRESHOLD:g} %, {subset}",
                metric="flow_accuracy",
                solver=setup.solver,
                settings={"subset": subset, **setup.settings},
                tier="paper",
                data=TITLE,
                data_hash=content(pairs),
            )


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """Percent of right pixels of each pair of images: the mean of its directions, which are no independent samples."""
    assert options.data is not None
    network, subset = row.settings["network"], row.settings["subset"]
    setup = Setup(network, row.settings["stage"], NAME, weights_in(options.data)[network])
    found: dict[Path, list[float]] = defaultdict(list)
    pairs = [p for p in _pairs(options) if subset in (ALL, p.subset)]
    for name in sorted({p.subset for p in pairs}):
        part = [p for p in pairs if p.subset == name]
        before = sum(map(len, found.values()))

        def told(done: int, before: int = before) -> None:
            advance((before + done) / len(pairs))

        for pair, accuracy in zip(part, _accuracies(setup, part, options, told), strict=True):
            found[pair.target.parent].append(accuracy)
    return [float(np.mean(directions)) for directions in found.values()]


def _accuracies(
    setup: Setup, pairs: Sequence[FlowPair], options: Options, advance: Callable[[int], None]
) -> list[float]:
    """Of every pair of a subset, kept after each: a killed run goes on with the next pair."""
    key = content_hash(setup.settings, content(pairs), source_hash(), torch.__version__)
    options.cache.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(options.cache.folder / f"flow-{key[:16]}.lock"):  # the row of all pairs may be measured beside
        found: list[float] = options.cache.read_json("flow", key) or []
        for pair in pairs[len(found) :]:
            assert setup.backbone is not None
            assert setup.matching is not None
            found.append(evaluate_pair(pair, setup.backbone, setup.matching, setup.masses))
            options.cache.write_json("flow", key, found)
            advance(len(found))
    return found


def _pairs(options: Options) -> tuple[FlowPair, ...]:
    return () if options.data is None else _on_disk(options.data, options.cache.folder / "data")


@cache
def _on_disk(data: Path, storage: Path) -> tuple[FlowPair, ...]:
    root = unpacked(data, (TITLE,), storage)
    return () if root is None else load_tss(root)
