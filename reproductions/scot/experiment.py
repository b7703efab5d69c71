"""SCOT's tables: keypoints and dense flow between images, with every stage of the matching on and off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from reproductions.experiment import Advance, Options, Row
from reproductions.scot import flow_rows, keypoint_rows
from reproductions.scot.figures import draw_comparison, draw_plan
from reproductions.scot.keypoint_rows import ALPHAS, moved_keypoints
from reproductions.scot.setups import DAISY, NETWORKS, Setup, weights_in
from reproductions.scot.sources import Pair, Source

DRAWN = ("NN", "OT", "OT + RHM")
PLANS = 5  # keypoints whose rows of the plan are drawn


def rows(options: Options) -> list[Row]:
    """Every stage on the embedded pairs; with ``--data``, every network whose weights are there on every data set."""
    return [*keypoint_rows.rows(options), *flow_rows.rows(options)]


def prepare(options: Options, advance: Advance) -> None:
    """Nothing: the networks are trained by others."""


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """A score in percent of each pair of images; of each keypoint where there is one pair alone."""
    kind = flow_rows if row.metric == "flow_accuracy" else keypoint_rows
    return kind.measure(row, options, advance)


def pictures(options: Options) -> dict[str, bytes]:
    """The matches of some pairs of each data set, drawn for three stages, and the plan of its first pair, as PNG."""
    found = {}
    for source in keypoint_rows.sources(options):
        setups = _drawn(source, options)
        for number in sorted({0, len(source.pairs) // 2}) if setups else ():
            pair = source.pairs[number]
            found[f"{source.name}_matches_{number}"] = draw_comparison(
                pair.source.pixels(),
                pair.target.pixels(),
                pair.source_keypoints,
                pair.target_keypoints,
                {setup.stage: moved_keypoints(setup, pair).numpy() for setup in setups},
                ALPHAS[1] * pair.threshold,
            )
        for setup in setups:
            if setup.stage == "OT":
                found[f"{source.name}_plan_0"] = _plan(setup, source.pairs[0])
    return found


def _drawn(source: Source, options: Options) -> list[Setup]:
    """The drawn stages on descriptors or on the first network of the data set; none without a network."""
    if options.data is None or source.tier == "embedded":
        return [Setup(DAISY, stage, source.name) for stage in DRAWN]
    networks = [(name, path) for name, path in weights_in(options.data).items() if NETWORKS[name].layers(source.name)]
    return [Setup(name, stage, source.name, path) for name, path in networks[:1] for stage in DRAWN]


def _plan(setup: Setup, pair: Pair) -> bytes:
    assert setup.matching is not None
    (s, ratio), (t, _) = (setup.cells(view) for view in (pair.source, pair.target))
    chosen = np.linspace(0, len(pair.source_keypoints) - 1, min(PLANS, len(pair.source_keypoints))).round().astype(int)
    points = pair.source_keypoints[chosen] * ratio
    return draw_plan(pair.source.pixels(), pair.target.pixels(), s, t, setup.matching.plan(s, t), points)
