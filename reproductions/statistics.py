"""Confidence intervals, and the verdict on a measured number beside a published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from reproductions.claims import Claim
from reproductions.metrics import METRICS

Verdict = Literal["agrees", "differs", "inconclusive", "not comparable", "not run"]

RESAMPLED_AT_ONCE = 2**20  # samples drawn in one go: 16 MB of indices and values


@dataclass(frozen=True)
class Estimate:
    """A mean over n items, or another number of theirs, with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(samples: Sequence[float] | np.ndarray) -> Estimate:
    """Mean ± 1.96 σ/√n with the population σ, as the few-shot literature prints it (DeepEMD, utils of its code).

    Raises:
        ValueError: no sample, or one that is not finite.
    """
    x = _finite(samples)
    half = 1.96 * x.std() / np.sqrt(x.size)
    return Estimate(x.mean().item(), (x.mean() - half).item(), (x.mean() + half).item(), x.size)


def bootstrap_interval(samples: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 10_000) -> Estimate:
    """Mean with the 95 % percentile bootstrap over the samples, for scores too skewed or few for a normal interval.

    Raises:
        ValueError: no sample, or one that is not finite.
    """
    x = _finite(samples)
    rng = np.random.default_rng(seed)
    rows = max(1, RESAMPLED_AT_ONCE // x.size)
    counts = [min(rows, resamples - k) for k in range(0, resamples, rows)]
    means = np.concatenate([x[rng.integers(x.size, size=(n, x.size))].mean(1) for n in counts])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(x.mean().item(), low.item(), high.item(), x.size)


def student_interval(samples: Sequence[float] | np.ndarray) -> Estimate:
    """Mean ± t s/√n of a few independent runs, s with n − 1 and t Student's 97.5 % quantile.

    Raises:
        ValueError: fewer than two samples, or one that is not finite.
    """
    x = _finite(samples)
    if x.size < 2:
        raise ValueError("the interval of a mean over runs needs two of them at least")
    half = stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return Estimate(x.mean().item(), (x.mean() - half).item(), (x.mean() + half).item(), x.size)


def clopper_pearson(correct: int, n: int) -> Estimate:
    """A share of n trials in percent, with the exact 95 % binomial interval (Clopper and Pearson, Biometrika 26, 1934).

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"a share needs 0 ≤ correct ≤ n and n ≥ 1, not {correct} of {n}")
    low = stats.beta.ppf(0.025, correct, n - correct + 1) if correct > 0 else 0.0
    high = stats.beta.ppf(0.975, correct + 1, n - correct) if correct < n else 1.0
    return Estimate(100 * correct / n, 100 * float(low), 100 * float(high), n)


def resampled_interval(values: Sequence[float] | np.ndarray, n: int) -> Estimate:
    """A number that is no mean of samples: the first value, with the 95 % percentile interval of the others.

    Args:
        values: the number as measured on n items, and on as many drawn from them with replacement, again and again.
        n: how many items there are.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    x = _finite(values)
    if x.size < 2:
        raise ValueError("the interval of a resampled number needs one resampled value at least")
    low, high = np.quantile(x[1:], [0.025, 0.975])
    return Estimate(x[0].item(), low.item(), high.item(), n)


def _finite(samples: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(samples, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"an interval needs finite samples, and of these {x.size} are {np.isfinite(x).sum()} finite")
    return x


def verdict(
    claim: Claim | None, measured: Estimate | None, data: str, why_not_run: str = "", differs: str = ""
) -> tuple[Verdict, str]:
    """What a measured number says about a published one, and why.

    A number measured on other data than the paper's, or in a way that ``differs``, never agrees. Else it *agrees* when
    the published value lies within the measured interval widened by the claim's tolerance, is *inconclusive* when the
    interval is wider than that tolerance, and else *differs*.
    """
    if measured is None:
        return "not run", why_not_run
    if claim is None:
        return "not comparable", "no published number was found for this row"
    if data != claim.data:
        return "not comparable", f"measured on {data}, published for {claim.data} ({claim.row})"
    if differs:
        return "not comparable", differs
    if measured.half_width > claim.tolerance:
        return (
            "inconclusive",
            f"the interval ± {measured.half_width:.2g} is wider than the tolerance {claim.tolerance:g}",
        )
    inside = measured.low - claim.tolerance <= claim.value <= measured.high + claim.tolerance
    gap = f"{measured.mean - claim.value:+{METRICS[claim.metric].form}} {claim.unit}".rstrip()
    return ("agrees" if inside else "differs"), f"{gap} against the published value, tolerance {claim.tolerance:g}"
