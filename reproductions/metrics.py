"""The metrics of the tables: what each is called, its unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["higher", "lower"]
Interval = Literal["normal", "bootstrap", "student"]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, its unit and direction, and the change (in its unit) that the gate lets pass.

    Attributes:
        interval: how its interval is made: "normal", of many samples alike; "bootstrap", as samples of few values want
            it; "student", of a few runs.
        form: how its numbers are printed.
        counted: a share of n problems, which moves in steps of one of them.
    """

    title: str
    unit: str
    direction: Direction
    gate_tolerance: float
    interval: Interval = "normal"
    form: str = ".2f"
    counted: bool = False

    @property
    def label(self) -> str:
        """The title with the unit, where there is one: of an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def limits(self) -> tuple[float, float]:
        """Between which numbers it lies, whatever was measured."""
        if self.unit == "points":
            return -100.0, 100.0
        if self.unit == "percent" and self.direction == "higher":
            return 0.0, 100.0
        return (0.0 if self.unit else -math.inf), math.inf  # gaps, errors and times; costs and bounds have no unit

    @property
    def phrase(self) -> str:
        """The same, in a sentence."""
        return f"{self.title} in {self.unit}" if self.unit else self.title


METRICS = {
    # Reruns differ by library versions and thread counts; half a point is far below any effect the tables show.
    "few_shot_accuracy": Metric("few-shot accuracy", "percent", "higher", 0.5),
    "accuracy_gain": Metric("gain in accuracy", "points", "higher", 0.5),
    # Of one machine and its noise: the asv benchmarks are where time is watched.
    "episode_time": Metric("time", "ms", "lower", math.inf, form=".3g"),
    "gradient_error": Metric("relative error", "percent", "lower", 1.0, form=".2g"),
    # A keypoint at the edge of the radius may fall either way with another interpolation or BLAS: the papers' own code
    # and tables differ by up to 0.2 points.
    "pck": Metric("PCK", "percent", "higher", 0.5, interval="bootstrap"),
    "flow_accuracy": Metric(
        "flow accuracy", "percent", "higher", 0.5, interval="bootstrap"
    ),  # the same, for the pixels of a dense flow
    # A run is one seed: what a retraining with other libraries moves is of the size of the interval over seeds. The
    # gate widens these tolerances by it, to 2.5 points at most.
    "mean_average_precision": Metric("mAP", "percent", "higher", 2.0, interval="student"),
    "overall_f1": Metric("OF1", "percent", "higher", 2.0, interval="student"),
    "class_f1": Metric("CF1", "percent", "higher", 2.0, interval="student"),
    "f1_at_k": Metric("F1@k", "percent", "higher", 2.0, interval="student"),
    "precision_at_k": Metric("P@k", "percent", "higher", 2.0, interval="student"),
    "mass_inside": Metric("weight inside the boxes", "percent", "higher", 2.5, interval="student"),
    "map_gain": Metric("gain in mAP", "points", "higher", 2.5, interval="student"),
    # A proven optimum is the same everywhere; what a time limit ends moves by a few pairs.
    "matching_accuracy": Metric("matching accuracy", "percent", "higher", 2.0, interval="bootstrap"),
    "matching_cost": Metric("cost / N²", "", "lower", 0.005, interval="bootstrap", form=".5f"),
    "matching_bound": Metric("bound / N²", "", "higher", 0.005, interval="bootstrap", form=".5f"),
    "optimality_gap": Metric("optimality gap", "percent", "lower", 1.0, interval="bootstrap"),
    "proven_optimal": Metric("proven optimal", "percent", "higher", 2.5, interval="bootstrap", counted=True),
    "global_optimum": Metric("global optimum", "percent", "higher", 2.5, interval="bootstrap", counted=True),
    "solve_time": Metric("time", "s", "lower", math.inf, form=".3g"),  # of one machine and its noise
    "alignment": Metric("alignment", "", "higher", 0.005, interval="bootstrap", form=".4f"),
    "classification_accuracy": Metric("classification accuracy", "percent", "higher", 2.0, interval="student"),
}


def few_shot_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of queries whose largest logit is their class: ``(…, queries, way)``, ``(…, queries)`` → ``(…,)``."""
    return 100 * (logits.argmax(-1) == labels).float().mean(-1)


def percentage_of_correct_keypoints(
    predicted: Tensor, target: Tensor, threshold: Tensor | float, alpha: float
) -> Tensor:
    """Percent of a pair's keypoints that lie within ατ of their target: ``(…, K, 2)`` → float64 ``(…,)``.

    Rows of ``target`` that are NaN are padding and do not count; a prediction that is NaN is wrong. The
    radius is ``alpha``, a share of ``threshold`` τ, which is one number or one a pair, in the unit of the keypoints.

    Raises:
        ValueError: the shapes differ, a pair has no keypoint, or a τ or α is not positive.
    """
    if predicted.shape != target.shape or target.shape[-1:] != (2,) or target.ndim < 2:
        raise ValueError(f"keypoints are (…, K, 2): predicted {tuple(predicted.shape)}, target {tuple(target.shape)}")
    radius = alpha * torch.as_tensor(threshold, dtype=torch.float64)
    counted = target.isfinite().all(-1)
    if not counted.any(-1).all() or not (radius > 0).all():
        raise ValueError("PCK needs at least one keypoint a pair, and a positive radius")
    distance = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1)
    correct = (distance <= radius[..., None]) & counted
    return 100 * correct.sum(-1) / counted.sum(-1).double()
