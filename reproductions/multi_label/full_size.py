"""The papers at full size: their own data sets, CLIP's weights and trained models in a folder of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from reproductions import UserError
from reproductions.claims import load_paper
from reproductions.datasets.multi_label import MultiLabelImages, find_folder
from reproductions.experiment import Advance, Options, Row
from reproductions.features.clip import Clip, load_clip
from reproductions.machine import WORKERS, Machine, open_machine
from reproductions.multi_label.checkpoints import Which, load_weights
from reproductions.multi_label.configuration import Configuration, ModelSettings, read_configuration
from reproductions.multi_label.evaluation import scores
from reproductions.multi_label.resampling import measured
from reproductions.multi_label.training import MultiLabelModel, train
from reproductions.progress import Stages
from reproductions.provenance import library_versions
from reproductions.statistics import Estimate
from reproductions.storage import Cache, content_hash, source_hash
from reproductions.training import OnEpoch

CLIP_FILES = (
    *("{}.pt", "{}.pth", "{}.bin", "{}.safetensors"),
    *("{}/open_clip_model.safetensors", "{}/open_clip_pytorch_model.bin"),
)
"""Names of CLIP's weights in ``DIR/weights``, for ViT-B-16 or another: OpenAI's archive comes as ``ViT-B-16.pt``."""
WEIGHTS: tuple[Which, ...] = ("average", "last")


@dataclass(frozen=True)
class Column:
    """A number that is measured on a split: its name in the table, its metric, and the settings of that."""

    name: str
    metric: str
    split: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet:
    """A data set of a paper.

    Attributes:
        name: of its table, of its configuration, and of the models trained on it.
        folders, inside: what the user's folder has of it: one of these folders, and one of these files in it.
        load: folder and split, "train" or that of a column → its images; raises ``UserError``.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    inside: tuple[str, ...]
    load: Callable[[Path, str], MultiLabelImages]
    columns: tuple[Column, ...]

    @property
    def expected(self) -> str:
        """What to put into the user's folder."""
        return f"{self.title}, {' or '.join(f'{self.folders[0]}/{file}' for file in self.inside)}"

    def held(self, folder: Path | None) -> bool:
        """Whether the folder has the data set."""
        return folder is not None and any(find_folder(folder, self.folders, file) for file in self.inside)


@dataclass(frozen=True, eq=False, kw_only=True)
class FullSize(Generic[ModelSettings]):
    """What a paper has at full size.

    Attributes:
        paper, method: the name of its folder here, and that of its rows.
        solver: recorded in the table.
        settings: what the table ``model`` of its configurations holds.
        make: CLIP, label names, settings, cache and seed → the model that is trained.
        differs: what of a test set is otherwise than published, "" where nothing is.
        configurations: the folder of ``<data set>.toml``.
    """

    paper: str
    method: str
    solver: str
    settings: type[ModelSettings]
    make: Callable[[Clip, Sequence[str], ModelSettings, Cache, int], MultiLabelModel]
    data_sets: tuple[DataSet, ...]
    differs: Callable[[MultiLabelImages], str] = lambda images: ""
    configurations: Path = field(default=Path())

    def rows(self, options: Options) -> list[Row]:
        """A row for each column of each data set, with averaged and with last weights; they say what is missing.

        Raises:
            UserError: a data set that is there, but not as expected.
        """
        return [row for data_set in self.data_sets for row in self._rows(data_set, options)]

    def _rows(self, data_set: DataSet, options: Options) -> Iterator[Row]:
        claims = {c.key: c for c in load_paper(self.paper).claims}
        missing, path = self.missing(data_set, options), self.trained(data_set, options)
        trained = {} if missing or path is None else {"trained": _hash(path)}
        for which, name in zip(WEIGHTS, (self.method, f"{self.method}, last weights"), strict=True):
            for column in data_set.columns:
                images = None if missing or options.data is None else _images(data_set, options.data, column.split)
                yield Row(
                    table=data_set.name,
                    row=name,
                    column=column.name,
                    metric=column.metric,
                    solver=self.solver,
                    settings={"weights": which, "images": column.split, **column.settings, **trained},
                    tier="paper",
                    data=data_set.title,
                    data_hash="" if images is None else images.sha256,
                    claim=claims.get((data_set.name, name, column.name)),
                    missing=missing,
                    differs="" if images is None else self.differs(images),
                )

    def missing(self, data_set: DataSet, options: Options) -> str:
        """What it takes to measure on this data set, in a sentence; "" where all is there."""
        command = f"matchmark reproduce {self.paper} --data DIR --train --device cuda"
        backbone = self.configuration(data_set).backbone
        if not data_set.held(options.data):
            return f"needs in DIR {data_set.expected}, and {_clip_expected(backbone)}: {command}"
        if clip_weights(options.data, backbone) is None:
            return f"needs in DIR {_clip_expected(backbone)}: {command}"
        if self.trained(data_set, options) is None:
            name = f"DIR/weights/{self.paper}_{data_set.name}.safetensors"
            return f"needs a model trained on {data_set.title}, in {name} or by this command: {command}"
        return ""

    def measure(self, row: Row, options: Options, advance: Callable[[float], None]) -> Estimate:
        """The number, with the interval over resampled test images; scores are computed once for all numbers."""
        data_set = next(d for d in self.data_sets if d.name == row.table)
        folder = options.data
        assert folder is not None
        images, which = _images(data_set, folder, row.settings["images"]), row.settings["weights"]
        configuration = self.configuration(data_set, options.seed)
        versions = source_hash(), library_versions(), options.device
        given = row.data_hash, row.settings["trained"], which, configuration.model_dump(mode="json")

        def made() -> dict[str, Tensor]:
            path = self.trained(data_set, options)
            assert path is not None
            model = self._model(images.classes, configuration, folder, options.cache)
            assert isinstance(model, nn.Module)
            load_weights(path, model, which)
            # on CUDA the decoding of images would be what takes time
            workers = WORKERS // options.jobs if options.device != "cpu" else 0
            machine = Machine(torch.device(options.device), workers=workers, tell=lambda _, fraction: advance(fraction))
            return {"scores": scores(model, images, configuration.training, machine)}

        found = options.cache.tensors("scores", content_hash(*given, *versions), made)["scores"]
        return measured(row.metric, row.settings, found.numpy(), images.targets)

    def train(self, options: Options, advance: Advance) -> None:
        """Train a model on every data set that lacks one, as its configuration says; what was stopped goes on.

        Raises:
            UserError: the folder has none of the data sets, one that is not as expected, or no weights of CLIP.
        """
        folder, held = options.data, [d for d in self.data_sets if d.held(options.data)]
        if folder is None or not held:
            wanted = "; or ".join(d.expected for d in self.data_sets)
            raise UserError(f"there is nothing to train on: --train needs --data DIR with {wanted}")
        waiting = {d: self.configuration(d, options.seed) for d in held if self.trained(d, options) is None}
        for configuration in waiting.values():
            checked_clip_weights(folder, configuration.backbone)
        progress = Stages(advance)
        with open_machine(options.device, WORKERS, progress.tell) as machine:
            for data_set, configuration in waiting.items():
                told = progress.stage(f"training on {data_set.title}", configuration.training.epochs)
                path = self.trained_here(options.cache.folder / self.paper, data_set.name, configuration)
                self.train_on(data_set, folder, configuration, path, machine, options.cache, told)

    def train_on(
        self,
        data_set: DataSet,
        folder: Path,
        configuration: Configuration[ModelSettings],
        path: Path,
        machine: Machine,
        cache: Cache,
        on_epoch: OnEpoch,
    ) -> None:
        """Train on a data set of the folder; ``path`` gets the weights. Mixed precision is for CUDA alone.

        Raises:
            UserError: as for ``multi_label.training.train``, or the folder lacks the data set or the weights of CLIP.
        """
        images = data_set.load(folder, "train")
        amp = configuration.training.amp and machine.device.type == "cuda"
        training = configuration.training.model_copy(update={"amp": amp})
        configuration = configuration.model_copy(update={"training": training})
        model = self._model(images.classes, configuration, folder, cache)
        train(model, images, configuration, path, machine, on_epoch)

    def configuration(self, data_set: DataSet, seed: int = 0) -> Configuration[ModelSettings]:
        """The published setting of a data set; its seed is moved on by that of the user."""
        found = read_configuration(self.configurations / f"{data_set.name}.toml", self.settings)
        training = found.training.model_copy(update={"seed": found.training.seed + seed})
        return found.model_copy(update={"training": training})

    def trained(self, data_set: DataSet, options: Options) -> Path | None:
        """The file of the trained model, in the folder of data sets or among those trained here; None without."""
        configuration = self.configuration(data_set, options.seed)
        places = [self.trained_here(options.cache.folder / self.paper, data_set.name, configuration)]
        if options.data is not None:
            places.insert(0, options.data / "weights" / f"{self.paper}_{data_set.name}.safetensors")
        return next((path for path in places if path.is_file()), None)

    @staticmethod
    def trained_here(folder: Path, name: str, configuration: Configuration) -> Path:
        """Where a training writes: a file for each configuration and seed."""
        return folder / f"{name}_{configuration.training.seed}.safetensors"

    def _model(
        self, names: Sequence[str], configuration: Configuration[ModelSettings], folder: Path, cache: Cache
    ) -> MultiLabelModel:
        clip = load_clip(configuration.backbone, checked_clip_weights(folder, configuration.backbone))
        return self.make(clip, names, configuration.model, cache, configuration.training.seed)


def clip_weights(folder: Path | None, backbone: str) -> Path | None:
    """The file in ``folder/weights`` with CLIP's weights, by any of ``CLIP_FILES``; None without."""
    if folder is None:
        return None
    paths = (folder / "weights" / name.format(_stem(backbone)) for name in CLIP_FILES)
    return next((path for path in paths if path.is_file()), None)


def checked_clip_weights(folder: Path, backbone: str) -> Path:
    """The same, where there have to be some.

    Raises:
        UserError: there are none.
    """
    if (path := clip_weights(folder, backbone)) is None:
        raise UserError(f"{folder} lacks {_clip_expected(backbone)}")
    return path


def _clip_expected(backbone: str) -> str:
    names = [name.format(_stem(backbone)) for name in CLIP_FILES]
    return f"OpenAI's weights of CLIP {_stem(backbone)} in weights/{', '.join(names[:-1])} or {names[-1]}"


def _stem(backbone: str) -> str:
    """The name without what open_clip says of the activation."""
    return backbone.removesuffix("-quickgelu")


@cache
def _images(data_set: DataSet, folder: Path, split: str) -> MultiLabelImages:
    return data_set.load(folder, split)


@cache
def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
