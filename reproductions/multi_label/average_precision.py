"""Mean average precision of multi-label scores, in the three conventions that are in circulation.

Images are ranked by their score for class c; prec@k is the share of positives among the first k, P_c their number:

- ``non-interpolated``: AP_c = (1/P_c) Σ prec@k over the ranks k of positives (ML-GCN, ML-Decoder, DualCoOp, "VOC 2007"
  of SALGL);
- ``envelope``: the same under the largest precision at this or any later rank, the area below the monotone
  precision–recall curve (VOC since 2010, Query2Label also on COCO); never below the first;
- ``zero-shot``: non-interpolated, a class without positives has AP 0 and stays in the mean (BiAM, MKT).

Images of equal score have one rank, that of the last of them, so that no order of the files matters. The papers' codes
break such ties by whatever their sort does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Convention = Literal["non-interpolated", "envelope", "zero-shot"]
CONVENTIONS: tuple[Convention, ...] = ("non-interpolated", "envelope", "zero-shot")
Absent = Literal["left out", "zero"]


def average_precision(
    scores: ArrayLike, labels: ArrayLike, convention: Convention = "non-interpolated"
) -> NDArray[np.float64]:
    """AP of each class, float64 ``(C,)`` in [0, 1]; NaN where no image is positive (0 in the zero-shot convention).

    Args:
        scores: finite, shape ``(n, C)``; only their order within a class matters.
        labels: ``(n, C)``: 1 present, 0 absent, −1 not ranked at all (difficult, unlabelled).
        convention: see above.

    Raises:
        ValueError: shapes that differ, scores that are not finite, other labels, or no such convention.
    """
    s, y = checked(scores, labels)
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(map(repr, CONVENTIONS))}, not {convention!r}")
    order = np.argsort(-s, axis=0, kind="stable")
    s, y = np.take_along_axis(s, order, 0), np.take_along_axis(y, order, 0)
    positive = y == 1
    last = _last_of_equals(s)
    hits, ranked = np.cumsum(positive, 0), np.cumsum(y >= 0, 0)
    precision = np.take_along_axis(hits / np.maximum(ranked, 1), last, 0)
    if convention == "envelope":
        precision = np.maximum.accumulate(precision[::-1], 0)[::-1]
    count = positive.sum(0)
    found = (precision * positive).sum(0)
    return np.where(count > 0, found / np.maximum(count, 1), 0 if convention == "zero-shot" else np.nan)


def mean_average_precision(
    scores: ArrayLike,
    labels: ArrayLike,
    convention: Convention = "non-interpolated",
    absent: Absent = "left out",
) -> float:
    """MAP in percent: the mean AP over classes.

    Args:
        scores: as in ``average_precision``.
        labels: likewise.
        convention: likewise.
        absent: what becomes of a class without positives: "left out" of the mean, or "zero" as in ML-Decoder and
            DualCoOp; the zero-shot convention always counts it as 0.

    Raises:
        ValueError: as in ``average_precision``, or no class has a positive.
    """
    if absent not in ("left out", "zero"):
        raise ValueError(f"absent must be 'left out' or 'zero', not {absent!r}")
    ap = average_precision(scores, labels, convention)
    if absent == "zero":
        ap = np.nan_to_num(ap)
    if np.isnan(ap).all():
        raise ValueError(f"none of the {len(ap)} classes has a positive image, so there is nothing to average")
    return 100 * float(np.nanmean(ap))


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Scores as float64 and labels as int8, both ``(n, C)``.

    Raises:
        ValueError: shapes that differ or are not two-dimensional, scores that are not finite, labels besides 1, 0, −1.
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 2 or s.shape != y.shape or 0 in s.shape:
        raise ValueError(f"scores have shape {s.shape} and labels {y.shape}; both must be (images, classes), not empty")
    if not np.isfinite(s).all():
        image, c = np.argwhere(~np.isfinite(s))[0]
        raise ValueError(f"the score of image {image} for class {c} is {s[image, c]}; scores must be finite")
    if not np.isin(y, (-1, 0, 1)).all():
        raise ValueError(f"labels must be 1, 0 or −1, not {np.setdiff1d(y, (-1, 0, 1))[0]}")
    return s, y.astype(np.int8)


def _last_of_equals(s: NDArray[np.float64]) -> NDArray[np.int64]:
    """For sorted columns, the last position that holds the same value, ``(n, C)``."""
    n = len(s)
    ends = np.vstack([s[1:] != s[:-1], np.ones((1, s.shape[1]), bool)])
    position = np.where(ends, np.arange(n)[:, None], n)
    return np.minimum.accumulate(position[::-1], 0)[::-1]
