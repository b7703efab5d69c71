"""The rows of a table of matches: one number each, and all that is needed to measure it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from reproductions.blind_match.contenders import Contender
from reproductions.blind_match.method import Distortion
from reproductions.blind_match.outcomes import columns_of
from reproductions.experiment import Row


class Source(NamedTuple):
    """Where the instances of a row come from."""

    tier: str
    data: str
    data_hash: str


def rows_of(
    table: str,
    row: str,
    contender: Contender,
    limit: float,
    distortion: Distortion,
    about: Mapping[str, Any],
    source: Source,
    columns: Mapping[str, str] | None = None,
    missing: str = "",
) -> list[Row]:
    """A row a column of what is said of a contender.

    Args:
        table: where they stand.
        row: what they are called there.
        contender: who matches.
        limit: seconds a match.
        distortion: by which kernels.
        about: which instances, as the table's own ``measure`` reads it from the settings.
        source: of the instances.
        columns: column → metric; all that the contender gives when left out.
        missing: why it cannot be measured here, "" where it can.
    """
    switches = {name: True for name, on in asdict(distortion.compatibility).items() if on}
    shown = {"distortion": distortion.title, **switches, **about, "limit": limit, **contender.settings}
    return [
        Row(table, row, column, metric, contender.solver, shown, *source, missing=missing)
        for column, metric in (columns or columns_of(contender)).items()
    ]


def by_metric(table: str, column: str, rows: list[Row]) -> list[Row]:
    """The same rows in one table a metric, all in one column: so that solvers stand beside problem sizes."""
    return [replace(r, table=f"{table}_{r.column}", column=column) for r in rows]
