"""The claims of the blind matching paper, and numbers without a unit in tables and in the gate."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from reproductions.claims import load_paper
from reproductions.gate.tables import compared, paper_table
from reproductions.metrics import METRICS
from reproductions.report import COLUMNS, markdown, measured_text, published_text
from reproductions.statistics import Estimate, verdict

TABLES = {
    "small_scale_solvers": 21,
    "unsupervised_classification": 8,
    "small_scale_cifar10": 32,
    "small_scale_cinic10": 32,
    "small_scale_gain": 2,
    "larger_scale_cifar100": 30,
    "larger_scale_imagenet100": 30,
    "solver_comparison_larger": 30,
    "solver_comparison_larger_time": 20,
    "shuffling_coco_knn": 31,
}


def test_the_claims_are_whole_and_of_known_metrics():
    paper = load_paper("blind_match")
    counts = pd.Series([c.table for c in paper.claims]).value_counts().to_dict()
    assert counts == TABLES
    for claim in paper.claims:
        metric = METRICS[claim.metric]
        assert (claim.unit, claim.direction) == (metric.unit, metric.direction)
        assert math.isfinite(claim.value)
        assert 0 < claim.tolerance <= 5
        assert claim.unit != "percent" or 0 <= claim.value <= 100
        assert "v2" in claim.version or "later paper" in claim.version, "no number of the first version"
    every = {(c.row, c.column) for c in paper.claims if c.table == "larger_scale_cifar100"}
    assert every == {(c.row, c.column) for c in paper.claims if c.table == "larger_scale_imagenet100"}


def test_values_as_published():
    paper = load_paper("blind_match")
    for table, row, column, value, interval, tolerance in (
        ("small_scale_solvers", "MPOpt", "accuracy", 94, None, 1),
        ("small_scale_solvers", "FHG", "cost", 0.319, None, 0.002),
        ("unsupervised_classification", "DINOv2 ViT-G/14", "All-Roberta-large-v1", 51.1, None, 0.5),
        ("small_scale_cifar10", "DINOv2 ViT-G/14", "accuracy", 69.5, 24, 0.5),
        ("small_scale_cinic10", "CN-L-22ft@384", "accuracy", 19, 2, 0.5),
        ("larger_scale_cifar100", "CLIP ViT-L/14@336", "N = 40", 81.3, None, 0.6),
        ("larger_scale_cifar100", "CLIP ViT-L/14@336", "N = 10", 94.7, None, 2),
        ("solver_comparison_larger", "FHG", "N = 100", 0.609, None, 0.001),
        ("solver_comparison_larger_time", "MPOpt+GRASP", "N = 90", 821, None, 0.5),
        ("shuffling_coco_knn", "DINOv2 ViT-G/14", "level 0.4", 0.082, None, 0.002),
    ):
        claim = paper.claim(table, row, column)
        assert (claim.value, claim.interval, claim.tolerance) == (value, interval, tolerance)
    assert "unconfirmed" in paper.claim("small_scale_solvers", "FHG", "accuracy").protocol
    assert "quote" in paper.claim("solver_comparison_larger", "FHG", "N = 10").version


def test_costs_keep_their_digits_and_need_no_unit():
    claim = load_paper("blind_match").claim("small_scale_solvers", "FAQ", "cost")
    assert verdict(claim, Estimate(0.5471, 0.5471, 0.5471, 20), "CIFAR-10") == (
        "agrees",
        "+0.00110 against the published value, tolerance 0.002",
    )
    row = dict.fromkeys(COLUMNS, "x") | {
        "metric": "matching_cost",
        "unit": "",
        "measured": 0.5,
        "ci_low": 0.5,
        "ci_high": 0.5,
        "published": claim.value,
        "published_ci": None,
    }
    assert published_text(pd.Series(row)) == "0.54600"
    assert measured_text(pd.Series(row | {"n": 1})) == "0.50000"  # of one sample no interval is known
    assert measured_text(pd.Series(row | {"n": 2})) == "0.50000 ± 0.00000"
    table = pd.DataFrame([row])
    assert "\ncost / N²; tier" in markdown(load_paper("blind_match"), "costs", table, [claim])
    texts = [table.assign(measured=x, n=20, tolerance=None, seconds=1.0).to_csv(index=False) for x in (0.52, 0.5)]
    (finding,) = compared(*(paper_table("p/t.csv", text.encode()) for text in texts))
    assert not finding.passed
    assert finding.sentence == "worse by 0.02 (tolerance 0.005)"


@pytest.mark.parametrize("name", ["matching_cost", "solve_time"])
def test_less_is_better_of_costs_and_times(name):
    assert METRICS[name].direction == "lower"
    assert METRICS["solve_time"].label == "time (s)"
    assert METRICS["matching_cost"].label == METRICS["matching_cost"].phrase == "cost / N²"
