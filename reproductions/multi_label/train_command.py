"""The command that trains a paper's model on one's own copy of a data set, on one device or under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reproductions import UserError
from reproductions.faults import said_in_one_sentence
from reproductions.machine import WORKERS, open_machine
from reproductions.multi_label.configuration import read_configuration
from reproductions.multi_label.full_size import FullSize, checked_clip_weights
from reproductions.progress import Bars
from reproductions.storage import Cache

CACHE = Path("results/cache")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def main(paper: FullSize) -> None:
    """Run the command; turn what the user can mend into one sentence and exit code 2."""
    with said_in_one_sentence("train", err):
        command(paper)()


def command(paper: FullSize) -> typer.Typer:
    """The command of a paper."""
    known = {d.name: d for d in paper.data_sets}
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.command(
        help=f"Train {paper.method} on {', '.join(known)}; a stopped training goes on where it stopped when the command"
        " is given again."
    )
    def train(
        data: Annotated[Path, typer.Option("--data", help="Folder of the data sets, and of CLIP's weights/.")],
        dataset: Annotated[str, typer.Option("--dataset", help="Its name, see above.")],
        config: Annotated[Path | None, typer.Option("--config", help="File; default: the data set's own.")] = None,
        device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
        workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = WORKERS,
        output: Annotated[Path, typer.Option("--output", help="Folder of the weights.")] = CACHE / paper.paper,
    ) -> None:
        if dataset not in known:
            raise UserError(f"--dataset is {dataset!r}, but it has to be one of {', '.join(known)}")
        chosen = known[dataset]
        if not chosen.held(data):
            raise UserError(f"{data} lacks {chosen.expected}")
        setting = paper.configuration(chosen) if config is None else read_configuration(config, paper.settings)
        checked_clip_weights(data, setting.backbone)
        path = paper.trained_here(output, dataset if config is None else config.stem, setting)
        try:
            with Bars(err) as bars, open_machine(device, workers, bars.tell) as machine:
                on_epoch = bars.stage(f"training on {chosen.title}", setting.training.epochs)
                paper.train_on(chosen, data, setting, path, machine, Cache(output), on_epoch)
                if machine.first:
                    out.print(f"weights: {path}", soft_wrap=True)
        except KeyboardInterrupt:
            err.print("train: stopped; finished epochs are kept, the same command goes on from there", soft_wrap=True)
            raise typer.Exit(130) from None

    return app
