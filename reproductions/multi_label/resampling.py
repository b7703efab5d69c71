"""Multi-label metrics of one test set, with the interval that resampling its images gives.

mAP and the F1 scores are no means over images. Their interval is the 95 % percentile interval over test sets of the
same size, drawn from the images with replacement. It tells how far the choice of test images moves a number, and
nothing of how far another training would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reproductions.multi_label.average_precision import Absent, Convention, checked
from reproductions.multi_label.precision_recall import above, of_counts, top
from reproductions.statistics import Estimate, resampled_interval

RESAMPLES, SEED = 200, 0
AT_ONCE = 8192
"""Images whose labels are counted in one go."""
READ_AS = {"f1_at_k": "OF1", "precision_at_k": "OP", "overall_f1": "OF1", "class_f1": "CF1"}
"""Metrics of predictions → attributes of ``PrecisionRecall``."""


def measured(metric: str, settings: Mapping[str, Any], scores: ArrayLike, labels: ArrayLike) -> Estimate:
    """A number of ``METRICS``, in percent, over the images of one test set.

    Args:
        metric: "mean_average_precision", or a key of ``READ_AS``.
        settings: ``convention`` and ``absent`` of mAP; else ``k`` labels predicted for each image, or those whose score
            reaches the ``threshold``, or with both those of the k that reach it.
        scores: ``(n, C)``.
        labels: ``(n, C)``: 1 present, 0 absent, −1 left out.

    Raises:
        ValueError: as in ``mean_average_precision`` and ``precision_recall``.
    """
    s, y = checked(scores, labels)
    counts = multiplicities(len(s))
    if metric == "mean_average_precision":
        values = resampled_mean_average_precision(s, y, counts, settings["convention"], settings["absent"])
        return resampled_interval(values, len(s))
    threshold = settings.get("threshold")
    predicted = top(s, settings["k"], threshold) if "k" in settings else above(s, settings["threshold"])
    return resampled_interval(resampled_precision_recall(predicted, y, counts, READ_AS[metric]), len(s))


def multiplicities(n: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.int32]:
    """How often each of n images is in the test set itself, once, and in each resampled one, ``(n, 1 + R)``."""
    rng = np.random.default_rng(seed)
    found = np.ones((n, 1 + resamples), np.int32)
    for r in range(1, 1 + resamples):
        found[:, r] = np.bincount(rng.integers(n, size=n), minlength=n)
    return found


def resampled_mean_average_precision(
    scores: NDArray, labels: NDArray, counts: NDArray[np.int32], convention: Convention, absent: Absent
) -> NDArray[np.float64]:
    """mAP in percent of each test set ``(1 + R,)``; those without a positive label have none and are left out.

    Raises:
        ValueError: the whole test set has no positive label.
    """
    nothing = 0.0 if absent == "zero" or convention == "zero-shot" else np.nan
    AP = np.stack([_average_precisions(s, y, counts, convention) for s, y in zip(scores.T, labels.T, strict=True)])
    some = np.isfinite(AP).sum(0) > 0
    if not some[0]:
        raise ValueError(f"none of the {len(AP)} classes has a positive image, so there is nothing to average")
    return 100 * np.nanmean(np.where(np.isnan(AP), nothing, AP)[:, some], 0)


def _average_precisions(
    s: NDArray, y: NDArray, counts: NDArray[np.int32], convention: Convention
) -> NDArray[np.float64]:
    """AP of one class in each test set ``(1 + R,)``, NaN without positives; an image drawn m times has m equal scores.

    Precision is needed at the ranks of positives alone, each the last of its equals: between those, images are summed.
    """
    ranked = np.flatnonzero(y >= 0)
    ranked = ranked[np.argsort(-s[ranked], kind="stable")]
    s, positive = s[ranked], np.flatnonzero(y[ranked] == 1)
    if not len(positive):
        return np.full(counts.shape[1], np.nan)
    last = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    ends, first = np.unique(last[np.searchsorted(last, positive)], return_index=True)
    seen = np.add.reduceat(counts[ranked[: ends[-1] + 1]], np.append(0, ends[:-1] + 1), axis=0)
    found = np.add.reduceat(counts[ranked[positive]], first, axis=0)
    hits = np.cumsum(found, 0)
    precision = hits / np.maximum(np.cumsum(seen, 0), 1)
    if convention == "envelope":
        precision = np.maximum.accumulate(precision[::-1], 0)[::-1]
    total = hits[-1]
    return np.where(total > 0, (precision * found).sum(0) / np.maximum(total, 1), np.nan)


def resampled_precision_recall(
    predicted: NDArray, labels: NDArray, counts: NDArray[np.int32], name: str
) -> NDArray[np.float64]:
    """An attribute of ``PrecisionRecall`` in each test set, ``(1 + R,)``."""
    totals = np.zeros((3, counts.shape[1], labels.shape[1]))
    for start in range(0, len(labels), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        p, positive = predicted[part] & (labels[part] >= 0), labels[part] == 1
        drawn = counts[part].T.astype(np.float64)
        totals += [drawn @ x.astype(np.float64) for x in (p & positive, p, positive)]
    return np.array([getattr(of_counts(*one), name) for one in totals.swapaxes(0, 1)])
