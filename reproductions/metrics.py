"""The metrics of the tables: what each is called, its unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, its unit and direction, and the change (in its unit) that the gate lets pass."""

    title: str
    unit: str
    direction: Direction
    gate_tolerance: float


METRICS = {
    # Reruns differ by library versions and thread counts; half a point is far below any effect the tables show.
    "few_shot_accuracy": Metric("few-shot accuracy", "percent", "higher", 0.5),
}


def few_shot_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of queries whose largest logit is their class: ``(…, queries, way)``, ``(queries,)`` → ``(…,)``."""
    return 100 * (logits.argmax(-1) == labels).float().mean(-1)
