"""The learning rates of RAM's published training, set at the start of each epoch."""

from __future__ import annotations

import math

START, END = 0.01, 0.002  # learning rates before the first epoch and at the end of the period, in units of ``base``


def learning_rate(epoch: int, peak: float, base: float = 5e-5, warm_up: int = 3, period: int = 60) -> float:
    """Linear warm-up, then half a cosine whose period is far longer than the six epochs that are trained.

    Args:
        epoch: from 1.
        peak: of the group: 5·10⁻⁶ for the adapters, 5·10⁻⁵ for the temperatures, 10⁻³ for the learned tokens.
        base: of which the ends, the same for all groups, are fractions.
        warm_up: the epoch that is the first of the cosine.
        period: the epoch at which the cosine would end.
    """
    if epoch < warm_up:
        return START * base + epoch * (peak - START * base) / warm_up
    return END * base + (peak - END * base) * (1 + math.cos(math.pi * epoch / period)) / 2
