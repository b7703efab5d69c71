"""What the commands share: where they print, the options that several take, and their checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from reproductions import UserError
from reproductions.devices import device_of

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the tables, runs and caches.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of data sets in their official layouts, and of weights.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
RESULTS = Path("results")


def checked_device(name: str) -> str:
    """The name itself.

    Raises:
        UserError: there is no such device, or none here.
    """
    if device_of(name).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"the device {name!r} was asked for, but torch sees no CUDA device here")
    return name


def check_folder(data: Path | None) -> None:
    """Refuse a folder of data sets that is none.

    Raises:
        UserError: it names what was passed.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"--data names a folder of data sets, and {data} is none")


def progress_bar() -> Progress:
    """One bar that is gone when it is finished."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    return Progress(*columns, console=err, transient=True)
