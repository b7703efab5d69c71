"""Numbers of one test set with the interval over resampled ones: against drawing the images and measuring anew."""

from __future__ import annotations

import numpy as np
import pytest

from reproductions.multi_label.average_precision import CONVENTIONS, mean_average_precision
from reproductions.multi_label.precision_recall import above, precision_recall, top
from reproductions.multi_label.resampling import (
    READ_AS,
    measured,
    multiplicities,
    resampled_mean_average_precision,
    resampled_precision_recall,
)
from reproductions.statistics import Estimate, resampled_interval

SETTINGS = ({"k": 3}, {"threshold": 0.6}, {"threshold": 0.6, "k": 2})


def made(n=60, classes=5, seed=0):
    """Scores with many ties, labels with all three values, and one class that is nowhere."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1], (n, classes), p=[0.1, 0.7, 0.2])
    labels[:, 2] = np.minimum(labels[:, 2], 0)
    return np.round(rng.random((n, classes)) + 0.2 * labels, 1), labels.astype(np.int8)


def drawn(counts):
    """The test sets, image by image."""
    return [np.repeat(np.arange(len(counts)), one) for one in counts.T]


def test_a_resampled_set_has_as_many_images_and_the_first_is_the_test_set():
    counts = multiplicities(50, 20)
    assert (counts[:, 0] == 1).all()
    assert (counts.sum(0) == 50).all()
    assert len({tuple(one) for one in counts.T}) == 21
    assert (multiplicities(50, 20) == counts).all()
    assert (multiplicities(50, 20, seed=1) != counts).any()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("absent", ["left out", "zero"])
def test_map_of_resampled_images_is_that_of_the_images_repeated(convention, absent):
    scores, labels = made()
    counts = multiplicities(len(scores), 25)
    found = resampled_mean_average_precision(scores, labels, counts, convention, absent)
    expected = [mean_average_precision(scores[i], labels[i], convention, absent) for i in drawn(counts)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_sets_without_a_positive_label_have_no_map():
    scores, labels = np.array([[0.1], [0.2], [0.3]]), np.array([[1], [0], [0]], np.int8)
    counts = np.array([[1, 0, 2], [1, 2, 1], [1, 1, 0]], np.int32)
    found = resampled_mean_average_precision(scores, labels, counts, "non-interpolated", "left out")
    np.testing.assert_allclose(found, [100 / 3, 200 / 3])
    with pytest.raises(ValueError, match="none of the 1 classes"):
        resampled_mean_average_precision(scores, np.zeros_like(labels), counts, "non-interpolated", "left out")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["OP", "OF1", "CF1"])
def test_counts_of_resampled_images_are_those_of_the_images_repeated(settings, name, monkeypatch):
    monkeypatch.setattr("reproductions.multi_label.resampling.AT_ONCE", 7)
    scores, labels = made()
    k, threshold = settings.get("k"), settings.get("threshold")
    predicted = above(scores, threshold) if k is None else top(scores, k, threshold)
    counts = multiplicities(len(scores), 25)
    found = resampled_precision_recall(predicted, labels, counts, name)
    expected = [getattr(precision_recall(predicted[i], labels[i]), name) for i in drawn(counts)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_what_is_measured_is_the_plain_number_within_its_interval():
    scores, labels = made(400)
    found = measured("mean_average_precision", {"convention": "non-interpolated", "absent": "left out"}, scores, labels)
    assert found.mean == pytest.approx(mean_average_precision(scores, labels), abs=1e-10)
    assert found.n == 400
    for metric, name in READ_AS.items():
        for settings in SETTINGS:
            one = measured(metric, settings, scores, labels)
            k, threshold = settings.get("k"), settings.get("threshold")
            predicted = above(scores, threshold) if k is None else top(scores, k, threshold)
            assert one.mean == pytest.approx(getattr(precision_recall(predicted, labels), name), abs=1e-10)
            assert one.low < one.mean < one.high


def test_the_interval_of_precision_at_k_is_that_of_a_mean():
    """With k predictions for each image OP is the mean over images of what is right among them."""
    scores, labels = made(2000)
    right = (top(scores, 3) & (labels == 1)).sum(1) / 3
    kept = (labels >= 0).all(1)
    found = measured("precision_at_k", {"k": 3}, scores[kept], labels[kept])
    assert found.mean == pytest.approx(100 * right[kept].mean())
    assert found.half_width == pytest.approx(196 * right[kept].std() / np.sqrt(kept.sum()), rel=0.15)


def test_a_resampled_interval_is_around_the_first_value():
    assert resampled_interval([5.0, *range(101)], 7) == Estimate(5.0, 2.5, 97.5, 7)
    for bad, why in (([1.0], "one resampled value"), ([1.0, np.nan], "finite")):
        with pytest.raises(ValueError, match=why):
            resampled_interval(bad, 3)
