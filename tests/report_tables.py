"""Results folders for the tests of the report page: small ones, large ones, and ones that mean harm."""

from pathlib import Path

import pandas as pd
from PIL import Image

from reproductions.report import COLUMNS

HARM = '</script><script>document.title = "taken"</script><img src=x onerror="document.title=1">'


def number(table: str, row: str, column: str, **cells: object) -> dict[str, object]:
    return (
        dict.fromkeys(COLUMNS)
        | {
            "paper": "deepemd",
            "table": table,
            "row": row,
            "column": column,
            "metric": "few_shot_accuracy",
            "unit": "percent",
            "tier": "embedded",
            "data": "digits",
            "solver": "emd",
            "settings": "way=5",
            "measured": 50.0,
            "ci_low": 49.0,
            "ci_high": 51.0,
            "n": 600,
            "verdict": "not comparable",
            "reason": "other data",
            "seconds": 1.5,
            "run": "20260101T000000-abcdef01",
        }
        | cells
    )


def written(results: Path, numbers: list[dict[str, object]], paper: str = "deepemd") -> Path:
    """The numbers as tables on disk."""
    folder = results / paper
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in pd.DataFrame(numbers, columns=COLUMNS).astype({"n": "Int64"}).groupby("table"):
        table.to_csv(folder / f"{name}.csv", index=False)
    return results


def small(results: Path) -> Path:
    """A table with a figure, measured and published, one with nothing measured, and a picture."""
    published = {"published": 60.0, "published_ci": 0.5, "tolerance": 1.0}
    nothing = dict.fromkeys(("measured", "ci_low", "ci_high", "n", "seconds", "run"))
    rows = [
        number("few_shot_digits", "EMD", "1-shot", measured=10.0, ci_low=9.0, ci_high=11.0),
        number("few_shot_digits", "EMD", "5-shot", measured=71.0, ci_low=70.0, ci_high=72.0),
        number("few_shot_digits", "pooled", "1-shot", measured=9.0, ci_low=8.0, ci_high=10.0),
        number("few_shot_digits", "pooled", "5-shot", measured=100.0, ci_low=99.0, ci_high=100.0),
        number("few_shot_digits", "Ω ↔ ω", "1-shot", tier="paper", verdict="differs", **published),
        number("waiting", "EMD", "1-shot", verdict="not run", reason="needs its data", **published | nothing),
    ]
    written(results, rows)
    for name in ("few_shot_digits", "few_shot_digits_flows"):
        Image.new("RGB", (1600, 400), "white").save(results / "deepemd" / f"{name}.png")
    return results


def large(results: Path, count: int = 10_000) -> Path:
    """So many numbers, four in a row."""
    rows = [number("many", f"solver {k // 4}", f"size {k % 4}", measured=float(k % 97)) for k in range(count)]
    return written(results, rows)


def harmful(results: Path) -> Path:
    """Markup in every column that is a text."""
    texts = ("row", "column", "tier", "data", "solver", "settings", "verdict", "reason", "unit", "run")
    return written(results, [number("few_shot_digits", HARM, HARM) | dict.fromkeys(texts, HARM)])
