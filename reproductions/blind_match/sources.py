"""What is matched at full size: the images and texts of a data set as vectors, and whether they can be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reproductions import UserError
from reproductions.datasets.labelled import load_labelled
from reproductions.datasets.labelled_images import LabelledImages
from reproductions.experiment import Advance
from reproductions.features.embeddings import embed_images, embed_texts, image_key, is_embedded, text_key
from reproductions.features.language_models import LanguageModel, lacking_library, load_language_model
from reproductions.features.vision_models import VisionModel, load_vision_model
from reproductions.storage import Cache, content_hash


@dataclass(frozen=True, eq=False)
class Embedded:
    """The vectors of a data set by one vision and one language model.

    Attributes:
        vision: of the images, float32 ``(n, d)``.
        labels: int64 ``(n,)``, positions in ``classes``.
        language: of the texts, float32 ``(classes, texts, d')``, NaN where a class has fewer texts.
        classes: their names.
        title: of the data set.
        tier: "paper" for the paper's own images.
        note: what the texts are where they are not the paper's, else "".
        sha256: of the images' listing, the texts, and both models.
    """

    vision: Tensor
    labels: Tensor
    language: Tensor
    classes: tuple[str, ...]
    title: str
    tier: str
    note: str
    sha256: str


def embedded(
    dataset: str, vision: str, language: str, folder: Path, cache: Cache, device: str, advance: Advance
) -> Embedded:
    """The vectors, from the cache or made now, where need be with weights that their libraries download.

    Args:
        dataset: as for ``load_labelled``.
        vision: name of a vision model.
        language: name of a language model.
        folder: of data sets, and of weights.
        cache: where the vectors are kept.
        device: that models run on.
        advance: told what is being done, and which fraction of it is finished.

    Raises:
        UserError: the data set, a model or its weights cannot be had.
    """
    seeing, reading = load_vision_model(vision, folder, device), load_language_model(language, folder, device)
    data = load_labelled(dataset, folder)
    return Embedded(
        vision=embed_images(seeing, data, cache, advance),
        labels=torch.from_numpy(data.labels),
        language=embed_texts(reading, data, cache, advance),
        classes=data.classes,
        title=data.title,
        tier=data.tier,
        note=data.note,
        sha256=content_hash(image_key(seeing, data, cache), text_key(reading, data, cache)),
    )


def missing(dataset: str, vision: str, language: str, folder: Path, cache: Cache | None = None) -> str:
    """Why the vectors cannot be had without a download, in one sentence; "" where they can.

    They can where they are in the cache, or where the data set and the weights of both models are in the folder.

    Raises:
        UserError: there is no such model.
    """
    seeing, reading = load_vision_model(vision, folder), load_language_model(language, folder)
    try:
        data = load_labelled(dataset, folder)
    except UserError as error:
        return str(error)
    if not _image_vectors_at_hand(seeing, data, cache):
        return _command(dataset, "vision", vision)
    if not _text_vectors_at_hand(reading, data, cache):
        return lacking_library() or _command(dataset, "language", language)
    return ""


def _image_vectors_at_hand(model: VisionModel, data: LabelledImages, cache: Cache | None) -> bool:
    if model.weights is not None or not model.needs_weights:
        return True
    return cache is not None and is_embedded(image_key(model, data, cache), cache)


def _text_vectors_at_hand(model: LanguageModel, data: LabelledImages, cache: Cache | None) -> bool:
    if model.runs_without_download:
        return True
    return cache is not None and is_embedded(text_key(model, data, cache), cache)


def _command(dataset: str, kind: str, name: str) -> str:
    return (
        f"the vectors by {name} are not there, nor its weights in DIR/weights:"
        f' matchmark data embed --data DIR --dataset {dataset} --{kind} "{name}" downloads and makes them'
    )
