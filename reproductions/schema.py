"""The schema of a folder of results: which one it has, and what is done about an older or a newer one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from reproductions import UserError

SCHEMA = 2
"""Of tables, run records and cached files. 1: without a number, tables may lack columns, cached files have no seal."""
FILE = "schema.json"


def schema_of(folder: Path) -> int:
    """The schema that a folder says it has; one that says nothing has the first.

    Raises:
        UserError: a newer one than this version knows, or none that can be read.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_bytes())["schema"]
    except FileNotFoundError:
        return 1
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UserError(f'{path} is damaged: it should say {{"schema": {SCHEMA}}}, or which one the folder has')
    if found > SCHEMA:
        raise UserError(
            f"{folder} has schema {found}, and this version knows {SCHEMA}: use a newer one, or another --results"
        )
    return found


def is_measured_row(value: Any) -> bool:
    """Whether this is what the cache keeps of a row: an estimate of finite numbers or why it has none, seconds, run."""
    if not isinstance(value, dict) or not isinstance(value.get("run"), str) or not _is_real(value.get("seconds")):
        return False
    estimate, others = value.get("estimate"), value.keys() - {"estimate", "seconds", "run"}
    if estimate is None:
        return others == {"reason"} and isinstance(value["reason"], str)
    known = isinstance(estimate, dict) and estimate.keys() == {"mean", "low", "high", "n"}
    return not others and known and all(map(_is_real, estimate.values()))


def _is_real(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
