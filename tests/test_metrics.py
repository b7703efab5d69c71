"""PCK against the papers' own code, the claims it is held to, and the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from reproductions import statistics
from reproductions.claims import load_paper
from reproductions.datasets.correspondence import extent
from reproductions.metrics import METRICS, percentage_of_correct_keypoints
from reproductions.statistics import bootstrap_interval, mean_interval, student_interval


@pytest.mark.parametrize("convention", ["pfpascal", "pfwillow", "spair"])
def test_pck_is_that_of_the_papers_own_code(golden, convention):
    data = golden("scot_pck")
    predicted, target = (torch.from_numpy(data[f"{k}_kps_resized"]).mT for k in ("pred", "trg"))
    threshold = torch.from_numpy(data[f"tau_original_{convention}"] * data["resize_ratio"])
    classes = data["pair_class"]
    for a, alpha in enumerate(data["alphas"]):
        pairs = percentage_of_correct_keypoints(predicted, target, threshold, float(alpha)).numpy() / 100
        np.testing.assert_allclose(pairs, data[f"pck_pair_{convention}"][a], rtol=0, atol=1e-7)
        assert pairs.mean() == pytest.approx(data[f"pck_all_{convention}"][a], abs=1e-7)
        for c, mean in enumerate(data[f"pck_class_{convention}"][a]):
            assert pairs[classes == c].mean() == pytest.approx(mean, abs=1e-7)


def test_the_three_conventions_are_those_of_the_papers_own_code(golden):
    data = golden("scot_pck")
    for k, n in enumerate(data["n_kps"]):
        points = data["trg_kps_original"][k, :, :n].T
        assert extent(points) == pytest.approx(data["tau_original_pfwillow"][k], rel=1e-6)
        assert extent(data["trg_bbox_original"][k].reshape(2, 2)) == pytest.approx(data["tau_original_spair"][k])
        assert data["trg_original_hw"][k].max() == data["tau_original_pfpascal"][k]


def test_the_published_numbers_of_scot_are_claims():
    paper = load_paper("scot")
    assert paper.claim("pf_willow", "SCOT", "PCK@0.10 (keypoints)").value == 76.0
    assert paper.claim("code_spair", "SCOT (ResNet-50), uniform masses", "PCK@0.10 (box)").value == 31.3
    for claim in paper.claims:
        assert (claim.unit, claim.direction) == (METRICS[claim.metric].unit, METRICS[claim.metric].direction)
        assert 0 < claim.value < 100
    classes = [c.value for c in paper.claims if c.table == "spair_classes" and c.row == "SCOT"]
    assert np.mean(classes) == pytest.approx(35.5, abs=0.05)


def test_pck_by_hand():
    target = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [math.nan, math.nan]])
    predicted = torch.tensor([[3.0, 4.0], [10.0, 5.1], [math.nan, 0.0], [0.0, 0.0]])
    assert percentage_of_correct_keypoints(predicted, target, 50, 0.1).item() == pytest.approx(100 / 3)
    batch = percentage_of_correct_keypoints(
        predicted.expand(2, 4, 2), target.expand(2, 4, 2), torch.tensor([49.0, 52.0]), 0.1
    )
    assert batch.tolist() == pytest.approx([0, 200 / 3])
    assert METRICS["pck"].direction == "higher"
    for bad in (
        (predicted[:3], target, 50, 0.1),
        (predicted, target[3:].expand(4, 2), 50, 0.1),
        (predicted, target, 0, 0.1),
        (predicted, target, 50, -0.1),
        (predicted[..., 0], target[..., 0], 50, 0.1),
    ):
        with pytest.raises(ValueError, match=r"keypoint|PCK"):
            percentage_of_correct_keypoints(*bad)


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_holds(monkeypatch):
    samples = np.random.default_rng(0).normal(70, 10, 400)
    normal, drawn = mean_interval(samples), bootstrap_interval(samples)
    assert (drawn.mean, drawn.n) == (normal.mean, 400)
    assert drawn.low == pytest.approx(normal.low, abs=0.05)
    assert drawn.high == pytest.approx(normal.high, abs=0.05)
    assert bootstrap_interval(samples) == drawn
    assert bootstrap_interval(samples, seed=1) != drawn
    monkeypatch.setattr(statistics, "RESAMPLED_AT_ONCE", 1)
    one_by_one = bootstrap_interval(samples)
    assert one_by_one.low == pytest.approx(drawn.low, abs=0.05)


def test_the_bootstrap_of_few_or_skewed_samples():
    skewed = np.array([0.0] * 19 + [1.0])
    interval = bootstrap_interval(skewed)
    assert interval.low == 0
    assert interval.high - interval.mean > interval.mean - interval.low
    assert bootstrap_interval([0.5]).half_width == 0
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite samples"):
            bootstrap_interval(bad)


def test_the_interval_of_a_few_runs_is_students():
    runs = [61.0, 64.0, 66.0]
    found = student_interval(runs)
    expected = stats.t.interval(0.95, 2, np.mean(runs), stats.sem(runs))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.half_width > bootstrap_interval(runs).half_width
    with pytest.raises(ValueError, match="needs two of them"):
        student_interval([1.0])
