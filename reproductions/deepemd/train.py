"""Training of DeepEMD on one's own copy of a data set: ``python -m reproductions.deepemd.train``.

On several GPUs: ``torchrun --nproc-per-node 4 -m reproductions.deepemd.train …``. Exit codes: 0 done, 2 what was passed
cannot be used, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reproductions import UserError
from reproductions.datasets.few_shot import FEW_SHOT
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import OFFICIAL_NAMES, load_encoder, pretrained_model, trained_model
from reproductions.deepemd.embedding import VARIANTS, make_embedding
from reproductions.deepemd.meta import MetaTraining, meta_train
from reproductions.deepemd.pretrain import FilePretraining, pretrain
from reproductions.faults import said_in_one_sentence
from reproductions.machine import WORKERS, open_machine
from reproductions.progress import Bars

PRETRAINING = FilePretraining()
META = MetaTraining()
STAGES = ("pretrain", "meta", "both")
OUTPUT = Path("results/cache/deepemd")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command; turn what the user can mend into one sentence and exit code 2."""
    with said_in_one_sentence("train", err):
        app()


@app.command()
def train(
    data: Annotated[Path, typer.Option("--data", help="Folder that holds the data set's own folder.")],
    dataset: Annotated[str, typer.Option("--dataset", help="miniimagenet, tieredimagenet, cub, fc100 or cifar_fs.")],
    variant: Annotated[str, typer.Option("--variant", help="fcn, grid or sampling.")],
    stage: Annotated[str, typer.Option("--stage", help="pretrain (the same for all variants), meta or both.")] = "both",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of each stage; default 120 and 100.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision on CUDA.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = WORKERS,
    output: Annotated[Path, typer.Option("--output", help="Folder of the checkpoints.")] = OUTPUT,
) -> None:
    """Train DeepEMD's encoder; a stopped training goes on where it stopped when the command is given again."""
    name = _chosen("--dataset", dataset, {OFFICIAL_NAMES.get(k, k): k for k in FEW_SHOT})
    for option, value, known in (("--variant", variant, VARIANTS), ("--stage", stage, STAGES)):
        _chosen(option, value, {k: k for k in known})
    pretraining = replace(PRETRAINING, amp=amp, epochs=epochs or PRETRAINING.epochs)
    meta = replace(META, amp=amp, epochs=epochs or META.epochs)
    start, end = pretrained_model(output, name), trained_model(output, name, variant)
    try:
        with Bars(err) as bars, open_machine(device, workers, bars.tell) as machine:
            if amp and machine.device.type != "cuda":
                raise UserError(f"--amp needs a CUDA device, but --device is {device}: leave one of them out")
            splits = FEW_SHOT[name](data, "train"), FEW_SHOT[name](data, "val")
            if machine.first and (warning := splits[0].check_raw_size()):
                err.print(f"train: warning: {warning}", soft_wrap=True, markup=False)
            if stage != "meta":
                pretrain(*splits, pretraining, start, machine, bars.stage("pre-training", pretraining.epochs))
            if stage != "pretrain":
                encoder = _pretrained(start, pretraining)
                on_epoch = bars.stage("meta-training", meta.epochs)
                meta_train(encoder, *splits, make_embedding(variant, name), meta, end, machine, on_epoch)
            if machine.first:
                out.print(f"encoder: {start if stage == 'pretrain' else end}", soft_wrap=True)
    except KeyboardInterrupt:
        err.print("train: stopped; finished epochs are kept, the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None


def _pretrained(path: Path, settings: FilePretraining) -> ResNet12:
    """The encoder that meta-training starts from, for every variant that of the FCN."""
    if not path.is_file():
        raise UserError(f"there is no {path}: run --stage pretrain first, or copy the official checkpoint there")
    encoder = ResNet12(settings.widths)
    load_encoder(path, encoder)
    return encoder


def _chosen(option: str, value: str, known: dict[str, str]) -> str:
    """What the name stands for."""
    if value not in known:
        raise UserError(f"{option} is {value!r}, but it has to be one of {', '.join(known)}")
    return known[value]


if __name__ == "__main__":
    main()
