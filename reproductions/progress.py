"""How long work shows where it is: bars on a terminal, a line for the bar of the whole run, lines in a log."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from reproductions.training import Epoch, OnEpoch

PERIOD = 10.0
"""Seconds between two lines in a log."""


class Bars:
    """Two progress bars: the epochs of a stage, and the present pass over the images."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        # under torchrun only the first process draws
        disable = os.environ.get("RANK", "0") != "0"
        self.progress = Progress(SpinnerColumn(), *columns, console=console, transient=True, disable=disable)
        self.epochs = self.progress.add_task("reading the data set", total=None)
        self.images = self.progress.add_task("", total=1.0, visible=False)

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def stage(self, what: str, epochs: int) -> OnEpoch:
        """What a training calls after each of its epochs."""
        self.progress.reset(self.epochs, total=epochs, description=what)

        def on_epoch(epoch: Epoch) -> None:
            validated = "" if epoch.accuracy is None else f", validation {epoch.accuracy:.2f} %"
            text = f"{what}: loss {epoch.loss:.3f}{validated}"
            self.progress.update(self.epochs, completed=epoch.number, description=text)

        return on_epoch

    def tell(self, what: str, fraction: float) -> None:
        """What a machine calls while it goes over images."""
        self.progress.update(self.images, completed=fraction, description=what, visible=True)


class Stages:
    """Tells of the stage, its epochs, and the present pass over the images, whose fraction is the bar."""

    def __init__(self, advance: Callable[[str, float], None]) -> None:
        self.advance, self.text = advance, "reading the data set"

    def stage(self, what: str, epochs: int) -> OnEpoch:
        """What a training calls after each of its epochs."""
        self.text = what
        return partial(self._on_epoch, what, epochs)

    def tell(self, what: str, fraction: float) -> None:
        """What a machine calls while it goes over images."""
        self.advance(f"{self.text}, {what}", fraction)

    def _on_epoch(self, what: str, epochs: int, epoch: Epoch) -> None:
        reached = f"loss {epoch.loss:.3f}" if epoch.accuracy is None else f"{epoch.accuracy:.1f} %"
        self.text = f"{what}, {epoch.number} of {epochs} epochs done, {reached}"


class Lines:
    """Where there is no terminal for a bar, as in a log: a line every few seconds on what is being done since when."""

    def __init__(self, console: Console, name: str) -> None:
        self.console, self.name = console, name
        self.now = "starting", 0.0
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Lines:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._writer.join()

    def tell(self, what: str, fraction: float) -> None:
        """What a run calls when it gets on: what is being done, and which fraction of that is finished."""
        self.now = what, fraction

    def _write(self) -> None:
        start = time.monotonic()
        while not self._over.wait(PERIOD):
            what, fraction = self.now
            seconds = time.monotonic() - start
            self.console.print(f"{self.name}: {what}, {fraction:.0%}, {seconds:.0f} s", soft_wrap=True, markup=False)
