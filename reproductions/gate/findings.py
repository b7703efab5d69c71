"""A finding: one number, or one file, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal[
    "unchanged", "better", "worse", "new", "not compared", "missing", "not finite", "inconsistent", "unreadable"
]
ROUNDING = 1e-9
"""What never counts as a change for the worse."""


@dataclass(frozen=True)
class Finding:
    """What became of a number of the reference, or what is wrong with one on disk.

    Attributes:
        group: the table or the benchmark.
        name: of the number in it.
        severity: what findings are sorted by: the change in units of its tolerance, infinite where there is no number.
    """

    group: str
    name: str
    kind: Kind
    passed: bool
    sentence: str
    reference: float | None = None
    measured: float | None = None
    severity: float = 0.0

    @property
    def compared(self) -> bool:
        """Whether it speaks of a number of the reference that was looked for."""
        return self.kind in ("unchanged", "better", "worse", "missing", "not finite")

    @property
    def moved(self) -> bool:
        """Whether it is worth a line: what is unchanged is only counted."""
        return self.kind != "unchanged"


def failure(group: str, name: str, kind: Kind, sentence: str, reference: float | None = None) -> Finding:
    """Something that no tolerance covers."""
    return Finding(group, name, kind, False, sentence, reference, severity=math.inf)


def change(
    group: str, name: str, before: float, after: float | None, slack: float, higher: bool = False, unit: str = ""
) -> Finding:
    """What a number did: worse by more than ``slack`` fails, and so does one that is missing or not finite.

    Args:
        group: of the finding.
        name: of the number in it.
        before: finite.
        after: None where there is none.
        slack: in the unit of the number; infinite where it is not gated.
        higher: whether higher is better.
        unit: printed behind the numbers.
    """
    if after is None or math.isnan(after):
        return failure(group, name, "missing", "missing", before)
    if math.isinf(after):
        return failure(group, name, "not finite", "not finite", before)
    worse = before - after if higher else after - before
    if worse == 0:
        return Finding(group, name, "unchanged", True, "unchanged", before, after)
    moved = f"{abs(worse):.4g} {unit}".rstrip()
    passed = worse <= slack + ROUNDING
    allowed = "not gated" if math.isinf(slack) else f"tolerance {slack:.3g}"
    severity = 0.0 if math.isinf(slack) else worse / (slack + ROUNDING)
    kind: Kind = "worse" if worse > 0 else "better"
    return Finding(group, name, kind, passed, f"{kind} by {moved} ({allowed})", before, after, severity)


def grouped(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The findings of every group, the worst first, and the group with the worst one first."""

    def order(finding: Finding) -> tuple[bool, float]:
        return finding.passed, -finding.severity

    groups: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=order):
        groups.setdefault(finding.group, []).append(finding)
    return groups


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each kind, and how many failed."""
    found: dict[str, int] = {}
    for finding in findings:
        found[finding.kind] = found.get(finding.kind, 0) + 1
    return found | {"failed": sum(not f.passed for f in findings)}


def record(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For JSON, which has no infinite numbers: the worst first, with None for what is not finite."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(finding).items()}
        for group in grouped(findings).values()
        for finding in group
    ]
