"""Encoders for the paper's data sets in a folder of the user's: which are there, and training of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reproductions import UserError
from reproductions.datasets.few_shot import BENCHMARKS, FEW_SHOT
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import load_encoder, pretrained_model, trained_model
from reproductions.deepemd.embedding import VARIANTS, make_embedding
from reproductions.deepemd.meta import MetaTraining, meta_train
from reproductions.deepemd.pretrain import FilePretraining, pretrain
from reproductions.experiment import Advance, Options
from reproductions.machine import WORKERS, Machine, open_machine
from reproductions.progress import Stages

PRETRAINING, META = FilePretraining(), MetaTraining()


def present(options: Options) -> tuple[str, ...]:
    """The paper's data sets that the folder holds."""
    folder = options.data
    return () if folder is None else tuple(k for k, b in BENCHMARKS.items() if (folder / b.folder).is_dir())


def trained_encoder(options: Options, dataset: str, variant: str) -> Path | None:
    """The file of the trained encoder, in the folder of data sets or among those trained here; None without."""
    return _first(options, lambda place: trained_model(place, dataset, variant))


def train(options: Options, advance: Advance) -> None:
    """Train every encoder that the folder's data sets lack, with the paper's settings; what was stopped goes on.

    On CUDA the encoder runs in mixed precision.

    Raises:
        UserError: the folder holds none of the data sets, or one that is not as expected.
    """
    if not present(options):
        folders = ", ".join(b.folder for b in BENCHMARKS.values())
        raise UserError(f"there is nothing to train on: --train needs --data DIR with one of the folders {folders}")
    progress = Stages(advance)
    with open_machine(options.device, WORKERS, progress.tell) as machine:
        for dataset in present(options):
            missing = [v for v in VARIANTS if trained_encoder(options, dataset, v) is None]
            if missing:
                _train(dataset, missing, options, machine, progress)


def _train(dataset: str, variants: list[str], options: Options, machine: Machine, progress: Stages) -> None:
    assert options.data is not None
    output, title, amp = _trained_here(options), BENCHMARKS[dataset].title, machine.device.type == "cuda"
    pretraining = replace(PRETRAINING, seed=options.seed, amp=amp)
    meta = replace(META, seed=options.seed, amp=amp)
    splits = FEW_SHOT[dataset](options.data, "train"), FEW_SHOT[dataset](options.data, "val")
    start = _first(options, lambda place: pretrained_model(place, dataset))
    if start is None:
        start = pretrained_model(output, dataset)
        told = progress.stage(f"pre-training on {title}", pretraining.epochs)
        pretrain(*splits, pretraining, start, machine, told)
    for variant in variants:
        encoder = ResNet12(pretraining.widths)
        load_encoder(start, encoder)
        told = progress.stage(f"meta-training on {title}, {variant}", meta.epochs)
        end = trained_model(output, dataset, variant)
        meta_train(encoder, *splits, make_embedding(variant, dataset), meta, end, machine, told)


def _trained_here(options: Options) -> Path:
    return options.cache.folder / "deepemd"


def _first(options: Options, path_in: Callable[[Path], Path]) -> Path | None:
    places = (_trained_here(options),) if options.data is None else (options.data, _trained_here(options))
    return next((path for place in places if (path := path_in(place)).is_file()), None)
