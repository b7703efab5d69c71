"""How a training shows where it is: bars on the terminal, or a line for the bar of the whole run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from reproductions.training import Epoch, OnEpoch


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
