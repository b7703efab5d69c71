"""``matchmark data``: which data sets a folder holds; ``matchmark data embed``: their vectors, made in advance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from reproductions import UserError
from reproductions.console import (
    RESULTS,
    DataOption,
    DeviceOption,
    ResultsOption,
    check_folder,
    checked_device,
    err,
    out,
    progress_bar,
)
from reproductions.datasets import DATASETS
from reproductions.datasets.catalogue import KNOWN
from reproductions.experiment import Options
from reproductions.opening import open_results

data_app = typer.Typer(invoke_without_command=True)
ALL = "all"


@data_app.callback()
def data(context: typer.Context, folder: DataOption = None) -> None:
    """The data sets the project knows, and what a folder holds of those that do not come with it."""
    if context.invoked_subcommand is None:
        check_folder(folder)
        print_data_sets(folder)


@data_app.command()
def embed(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="cifar10, cifar100, cinic10, imagenet100, coco_captions, tiny_imagenet, or a folder of classes.",
        ),
    ],
    folder: DataOption = None,
    vision: Annotated[list[str] | None, typer.Option("--vision", help="A vision model, repeatable, or all.")] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", help="A language model, repeatable, or all.")
    ] = None,
    results: ResultsOption = RESULTS,
    device: DeviceOption = "cpu",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images or texts at once.")] = 64,
) -> None:
    """Put a data set through frozen models and keep the vectors; a stopped run goes on where it stopped."""
    from reproductions.features.language_models import LANGUAGE_MODELS
    from reproductions.features.vision_recipes import VISION_MODELS

    if folder is None:
        raise UserError("data embed needs --data DIR, the folder of the data set and of weights")
    check_folder(folder)
    if not vision and not language:
        raise UserError("data embed needs a model: --vision NAME or --language NAME, or all in place of the name")
    chosen = _chosen(vision, tuple(VISION_MODELS)), _chosen(language, LANGUAGE_MODELS)
    options = Options(results, folder, checked_device(device))
    open_results(results)
    try:
        with progress_bar() as progress:
            made, reused = _embed(dataset, *chosen, options, batch_size, progress)
    except KeyboardInterrupt:
        err.print("matchmark: stopped; what is finished is kept, the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None
    out.print(f"{made} made, {reused} reused" if made else f"all {reused} were there already", soft_wrap=True)


def print_data_sets(folder: Path | None) -> None:
    """The table of data sets, with what the folder holds."""
    table = Table(title="Data")
    for column in ("name", "tier", "found", "licence", "source"):
        table.add_column(column, overflow="fold")
    for load in DATASETS.values():
        d = load()
        found = f"{len(d.images)} images, sha256 {d.sha256[:16]}…"
        table.add_row(d.name, d.tier, found, d.licence, d.source)
    for k in KNOWN:
        found = "here" if not k.places else k.found(folder) if folder is not None else ""
        table.add_row(k.title, k.tier, found or "–", k.licence, k.source)
    out.print(table)
    if folder is None:
        out.print("what a folder holds of the rest: matchmark data --data DIR", soft_wrap=True)


def _embed(
    dataset: str,
    vision: Sequence[str],
    language: Sequence[str],
    options: Options,
    batch_size: int,
    progress: Progress,
) -> tuple[int, int]:
    """How many sets of vectors were made, and how many were there already."""
    from reproductions.datasets.labelled import load_labelled
    from reproductions.features.embeddings import embed_images, embed_texts, image_key, is_embedded, text_key
    from reproductions.features.language_models import load_language_model
    from reproductions.features.vision_models import load_vision_model

    assert options.data is not None
    seeing = [load_vision_model(name, options.data, options.device) for name in vision]
    reading = [load_language_model(name, options.data, options.device) for name in language]
    task: TaskID = progress.add_task("reading the data set", total=1.0)
    data, cache, reused = load_labelled(dataset, options.data), options.cache, 0

    def advance(what: str, fraction: float) -> None:
        progress.update(task, description=what, completed=fraction)

    if data.note and reading:
        out.print(f"{data.title}: {data.note}", soft_wrap=True)
    for image_model in seeing:
        reused += is_embedded(image_key(image_model, data, cache), cache)
        n, d = embed_images(image_model, data, cache, advance, batch_size).shape
        out.print(f"{data.title}, {image_model.name}: {n} images, {d} numbers each", soft_wrap=True)
    for text_model in reading:
        reused += is_embedded(text_key(text_model, data, cache), cache)
        classes, texts, d = embed_texts(text_model, data, cache, advance, batch_size).shape
        out.print(
            f"{data.title}, {text_model.name}: {classes} classes, up to {texts} texts each, {d} numbers", soft_wrap=True
        )
    return len(seeing) + len(reading) - reused, reused


def _chosen(names: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(x for name in names or [] for x in (known if name == ALL else (name,))))
