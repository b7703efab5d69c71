"""asv's results against the committed ones: times by their samples, on one machine; memory and errors on any.

``asv`` reads its own files; it is imported only where two results differ, so that the gate runs without it, too.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reproductions
from reproductions import UserError
from reproductions.gate.files import Files
from reproductions.gate.findings import Finding, change, failure
from reproductions.gate.reading import Unreadable
from reproductions.gate.study import error_slack

TIME, MEMORY, TRACKED = 1.5, 1.1, 1.01
"""How many times the reference is let pass, or what asv.conf.json has for the benchmark where that is more. Machines
that are shared differ by half from run to run; what is tracked does not."""
PAGES = 2.0**22
"""Bytes by which the memory of equal runs differs."""
MACHINE = ("machine", "cpu", "num_cpu", "arch", "os")
CONFIGURATION = Path(reproductions.__file__).parents[1] / "asv.conf.json"
Label = tuple[str, tuple[str, ...]]
"""A benchmark, and the parameters of one of its numbers."""


@dataclass(frozen=True)
class _Number:
    """A number as asv keeps it: None where the benchmark failed, NaN where it was skipped."""

    value: float | None
    version: str | None
    samples: list[float] | None
    stats: dict[str, float] | None


def newest(files: Files, chosen: str | None = None, machine: str | None = None) -> str | None:
    """The path of the result that was measured last, None where there is none.

    Args:
        files: with paths such as ``asv/<machine>/<commit>-<environment>.json``.
        chosen: the beginning of the commit whose result is meant.
        machine: whose results are looked at first.

    Raises:
        Unreadable: a result is damaged.
    """
    results = [p for p in files if re.fullmatch(r"asv/[^/]+/(?!machine\.json$)[^/]+\.json", p)]
    if chosen is not None:
        results = [p for p in results if Path(p).name.startswith(chosen[:8])]
    preferred = [p for p in results if p.split("/")[1] == machine]
    return max(preferred or results, key=lambda path: (_started(path, files[path]), path), default=None)


def _started(path: str, content: bytes) -> float:
    try:
        found = json.loads(content)
        column = found["result_columns"].index("started_at")
        return max((row[column] or 0 for row in found["results"].values() if len(row) > column), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unreadable(f"{path} is no whole result of asv: run asv again, or restore it") from None


def machine_of(path: str) -> str:
    """The machine of a result, which is the folder that it lies in."""
    return path.split("/")[-2]


def compared(now: Any, then: Any, factor: float = TIME) -> list[Finding]:
    """What became of every number of the reference, and which benchmarks failed.

    Args:
        now: a result that was loaded.
        then: the one that it is compared with.
        factor: how many times slower is let pass.

    Raises:
        UserError: the project's asv.conf.json is not there.
    """
    other = [name for name in MACHINE if now.params.get(name) != then.params.get(name)]
    if now.env_vars != then.env_vars:
        other.append("environment")
    before, after, thresholds = dict(_numbers(then)), dict(_numbers(now)), _thresholds()
    found, times = [], 0
    for label, old in before.items():
        new = after.get(label)
        finding = _obvious(label, old, new)
        if finding is not None:
            found.append(finding)
        if finding is not None or old.value is None or math.isnan(old.value) or new is None or new.value is None:
            continue
        if _is_time(label[0]) and other:
            times += 1
        else:
            found.append(_changed(label, old, new, old.value, new.value, factor, thresholds))
    found += [f for label, new in after.items() if label not in before and (f := _unknown(label, new)) is not None]
    if times:
        why = f"{times} times are not compared: {_difference(now, then, other)}"
        found.append(Finding("asv", "times", "not compared", True, why))
    return found


def load(path: str, content: bytes) -> Any:
    """A result as asv's own class; ``path`` is its name in messages.

    Raises:
        Unreadable: it is damaged.
        UserError: asv is not installed.
    """
    try:
        from asv.results import Results
        from asv.util import UserError as AsvError
    except ImportError:
        raise UserError(
            "asv results are read by asv, which is not installed: pip install 'matchmark[bench]', or leave them out "
            "with --only tables --only study"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        file.write_bytes(content)
        try:
            loaded = Results.load(str(file))
            dict(_numbers(loaded))
        except (AsvError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise Unreadable(f"{path} is no whole result of asv: run asv again, or restore it") from None
    return loaded


def _numbers(results: Any) -> Iterator[tuple[Label, _Number]]:
    for name in results.get_all_result_keys():
        parameters = results.get_result_params(name)
        combinations = list(itertools.product(*parameters))
        kept = (results.get_result_value, results.get_result_samples, results.get_result_stats)
        version = results.benchmark_version.get(name)
        for combination, value, sample, stat in zip(
            combinations, *(read(name, parameters) for read in kept), strict=True
        ):
            number = None if value is None else float(value)
            yield (name, tuple(c.strip("'") for c in combination)), _Number(number, version, sample, stat)


def _obvious(label: Label, old: _Number, new: _Number | None) -> Finding | None:
    """What needs no comparison: a number that is not there, on either side."""
    group, name = _words(label)
    if old.value is not None and math.isnan(old.value):
        if new is not None and new.value is None:
            return failure(group, name, "missing", "the benchmark failed")
        return None if new is None or new.value is None or math.isnan(new.value) else _unknown(label, new)
    if new is None:
        return None if old.value is None else failure(group, name, "missing", "was not run", old.value)
    if new.value is None:
        return failure(group, name, "missing", "the benchmark failed", old.value)
    if math.isnan(new.value):
        return None if old.value is None else failure(group, name, "missing", "was skipped", old.value)
    if math.isinf(new.value):
        return failure(group, name, "not finite", "not finite", old.value)
    return _unknown(label, new) if old.value is None or new.version != old.version else None


def _unknown(label: Label, new: _Number) -> Finding | None:
    """A number without a reference, or of a benchmark that was changed since."""
    group, name = _words(label)
    if new.value is None:
        return failure(group, name, "missing", "the benchmark failed")
    if math.isinf(new.value):
        return failure(group, name, "not finite", "not finite")
    if math.isnan(new.value):
        return None
    return Finding(group, name, "new", True, "not in the reference, or of another version", None, new.value)


def _changed(
    label: Label, old: _Number, new: _Number, before: float, after: float, factor: float, thresholds: dict[str, float]
) -> Finding:
    """Two numbers that are there: the new one may be so many times the old one."""
    group, name = _words(label)
    configured = 1 + max((x for pattern, x in thresholds.items() if re.match(pattern, label[0])), default=0.0)
    if _is_time(label[0]):
        slack = (max(factor, configured) - 1) * before
        if slack >= abs(after - before) or not _differs(old, new):  # noise, and of no interest
            return Finding(group, name, "unchanged", True, "within the noise of times", before, after)
        return change(group, name, before, after, slack, unit="s")
    if _is_memory(label[0]):
        return change(group, name, before, after, (max(MEMORY, configured) - 1) * before + PAGES, unit="bytes")
    return change(group, name, before, after, error_slack(before, max(TRACKED, configured) - 1))


def _differs(old: _Number, new: _Number) -> bool:
    """Whether the samples say so: by asv's own test, where both have more than one."""
    if not old.stats or not new.stats or 1 in (old.stats.get("repeat"), new.stats.get("repeat")):
        return True
    from asv._stats import is_different

    return is_different(old.samples, new.samples, old.stats, new.stats)


def _is_time(benchmark: str) -> bool:
    method = benchmark.rsplit(".", 1)[-1]
    return method.startswith(("time_", "timeraw_", "track_seconds"))


def _is_memory(benchmark: str) -> bool:
    method = benchmark.rsplit(".", 1)[-1]
    return method.startswith(("peakmem_", "mem_")) or "memory" in method


def _words(label: Label) -> tuple[str, str]:
    return f"asv / {label[0]}", ", ".join(label[1]) or "all of it"


def _thresholds() -> dict[str, float]:
    """What asv.conf.json lets pass, as a share of the number, by pattern of the benchmark's name."""
    from asv.config import Config

    if not CONFIGURATION.exists():
        raise UserError(f"asv results are compared in a checkout of the project: there is no {CONFIGURATION}")
    return Config.load(str(CONFIGURATION)).regressions_thresholds


def _difference(now: Any, then: Any, other: list[str]) -> str:
    words = [f"{name} {now.params.get(name)} is not {then.params.get(name)}" for name in other if name != "environment"]
    return ", ".join([*words, *(["the environment variables differ"] if "environment" in other else [])])
