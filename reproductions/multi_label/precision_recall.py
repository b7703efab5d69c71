"""Precision, recall and F1 of multi-label predictions: overall (OP, OR, OF1) and per class (CP, CR, CF1).

With tp_c, pred_c and gt_c the numbers of right predictions, predictions and positives of class c:

    OP = Σ tp / Σ pred,  OR = Σ tp / Σ gt,  CP = mean_c tp/pred,  CR = mean_c tp/gt,  F1 = 2 P R / (P + R)

CF1 is the harmonic mean of CP and CR (ML-GCN, SALGL, RAM) or, another number, the mean over classes of their F1
(DualCoOp). "Top-3" keeps a label that is among the three best of its image, always (zero-shot papers) or only above the
threshold too (ML-GCN, SALGL). The codes differ as well in what a class without predictions counts; see ``Empty``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reproductions.multi_label.average_precision import checked

Empty = Literal["zero", "one", "one prediction"]
"""What 0/0 is: 0 (RAM, scikit-learn), 1 (SALGL); "one prediction": a class that is never predicted counts as
predicted once, wrongly, in CP and also in OP (ML-GCN)."""


@dataclass(frozen=True)
class PrecisionRecall:
    """All in percent.

    Attributes:
        OP, OR, OF1: overall (micro) precision, recall and F1.
        CP, CR, CF1: their means over classes; CF1 is the harmonic mean of CP and CR.
        mean_F1: the mean over classes of the F1 of each.
    """

    OP: float
    OR: float
    OF1: float
    CP: float
    CR: float
    CF1: float
    mean_F1: float


def above(scores: ArrayLike, threshold: float = 0.5) -> NDArray[np.bool_]:
    """The predictions "All": every label whose score reaches the threshold (0.5 of a probability, 0 of a logit)."""
    return np.asarray(scores) >= threshold


def top(scores: ArrayLike, k: int, threshold: float | None = None) -> NDArray[np.bool_]:
    """The k best labels of each image, of equal ones the first; only those that reach ``threshold``, where given.

    Raises:
        ValueError: fewer than k classes.
    """
    s = np.asarray(scores)
    if not 0 < k <= s.shape[-1]:
        raise ValueError(f"the top {k} of {s.shape[-1]} classes were asked for")
    chosen = np.zeros(s.shape, bool)
    np.put_along_axis(chosen, np.argsort(-s, axis=-1, kind="stable")[..., :k], True, -1)
    return chosen if threshold is None else chosen & (s >= threshold)


def precision_recall(predicted: ArrayLike, labels: ArrayLike, empty: Empty = "zero") -> PrecisionRecall:
    """Overall and per-class precision, recall and F1.

    Args:
        predicted: bool ``(n, C)``, by ``above`` or ``top``.
        labels: ``(n, C)``: 1 present, 0 absent, −1 not counted.
        empty: what a class without predictions or without positives counts.

    Raises:
        ValueError: shapes that differ, other labels, or no such ``empty``.
    """
    if empty not in ("zero", "one", "one prediction"):
        raise ValueError(f"empty must be 'zero', 'one' or 'one prediction', not {empty!r}")
    p, y = checked(predicted, labels)
    p, positive = p * (y >= 0), y == 1
    return of_counts((p * positive).sum(0), p.sum(0), positive.sum(0), empty)


def of_counts(tp: NDArray, pred: NDArray, gt: NDArray, empty: Empty = "zero") -> PrecisionRecall:
    """The same of the numbers of right predictions, predictions and positives of each class, ``(C,)`` each."""
    if empty == "one prediction":
        pred = np.maximum(pred, 1)
    nothing = 1.0 if empty == "one" else 0.0
    precision, recall = _ratio(tp, pred, nothing), _ratio(tp, gt, nothing)
    OP, OR = float(_ratio(tp.sum(), pred.sum(), 0)), float(_ratio(tp.sum(), gt.sum(), 0))
    CP, CR = float(precision.mean()), float(recall.mean())
    values = OP, OR, _harmonic(OP, OR), CP, CR, _harmonic(CP, CR), float(np.mean(_harmonic(precision, recall)))
    return PrecisionRecall(*(100 * float(v) for v in values))


def _ratio(a: ArrayLike, b: ArrayLike, nothing: float) -> NDArray[np.float64]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.full(a.shape, float(nothing)), where=b > 0)


def _harmonic(P: ArrayLike, R: ArrayLike) -> NDArray[np.float64]:
    P, R = np.asarray(P, np.float64), np.asarray(R, np.float64)
    return _ratio(2 * P * R, P + R, 0)
