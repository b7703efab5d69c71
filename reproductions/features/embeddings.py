"""Vectors of all images or texts of a data set, made once: in chunks, each kept as soon as it is there.

A stopped run goes on after the last chunk; at the end the chunks become one file, float32, in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from reproductions import UserError
from reproductions.datasets.labelled_images import Images, LabelledImages
from reproductions.machine import WORKERS
from reproductions.storage import Cache, content_hash

KIND = "embeddings"
IMAGES_A_CHUNK, TEXTS_A_CHUNK = 1024, 4096
Advance = Callable[[str, float], None]


class ImageModel(Protocol):
    """A vision model, such as ``VisionModel``."""

    @property
    def name(self) -> str: ...

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]: ...

    def __call__(self, batch: Tensor) -> Tensor: ...

    def fixed(self, count: int) -> Tensor | None: ...

    def key(self, cache: Cache) -> str: ...


class TextModel(Protocol):
    """A language model, such as ``LanguageModel``."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> Tensor: ...

    def key(self, cache: Cache) -> str: ...


def image_key(model: ImageModel, data: LabelledImages, cache: Cache) -> str:
    """What the vectors of these images are stored under."""
    return content_hash("images", data.sha256, model.key(cache))


def text_key(model: TextModel, data: LabelledImages, cache: Cache) -> str:
    """What the vectors of these texts are stored under."""
    return content_hash("texts", data.texts, model.key(cache))


def is_embedded(key: str, cache: Cache) -> bool:
    """Whether all vectors are there."""
    return cache.path(KIND, key, ".safetensors").is_file()


def embed_images(
    model: ImageModel, data: LabelledImages, cache: Cache, advance: Advance, batch_size: int = 64
) -> Tensor:
    """The vectors of all images, float32 ``(n, d)``.

    Args:
        model: on whichever device.
        data: the images.
        cache: where they are kept.
        advance: told what is being done, and which fraction of it is finished.
        batch_size: images that go through the model together.

    Raises:
        UserError: an image that is broken, or a vector that is not finite.
    """
    what = f"{data.title} by {model.name}"

    def made(start: int, stop: int) -> Tensor:
        found = []
        for done, batch in _batches(data.images, model.transform, start, stop, batch_size):
            found.append(model(batch))
            advance(what, done / len(data))
        return torch.cat(found)

    return _kept(image_key(model, data, cache), len(data), IMAGES_A_CHUNK, made, model.fixed(len(data)), cache, what)


def embed_texts(model: TextModel, data: LabelledImages, cache: Cache, advance: Advance, batch_size: int = 64) -> Tensor:
    """The vectors of all texts of every class, float32 ``(classes, texts, d)``; NaN where a class has fewer texts.

    Args:
        model: on whichever device.
        data: whose texts they are.
        cache: where the vectors are kept.
        advance: told what is being done, and which fraction of it is finished.
        batch_size: texts that go through the model together.

    Raises:
        UserError: a vector that is not finite.
    """
    what = f"texts of {data.title} by {model.name}"
    texts = [text for of_class in data.texts for text in of_class]

    def made(start: int, stop: int) -> Tensor:
        found = []
        for k in range(start, stop, batch_size):
            found.append(model(texts[k : min(k + batch_size, stop)]))
            advance(what, min(k + batch_size, stop) / len(texts))
        return torch.cat(found)

    flat = _kept(text_key(model, data, cache), len(texts), TEXTS_A_CHUNK, made, None, cache, what)
    counts = [len(of_class) for of_class in data.texts]
    return torch.nn.utils.rnn.pad_sequence(flat.split(counts), batch_first=True, padding_value=torch.nan)


def _kept(
    key: str, n: int, chunk: int, make: Callable[[int, int], Tensor], fixed: Tensor | None, cache: Cache, what: str
) -> Tensor:
    """The vectors from the cache, or put together from its chunks, each made where it is not there."""
    keys = {start: content_hash(key, start, chunk) for start in range(0, n, chunk)}

    def checked(start: int) -> dict[str, Tensor]:
        vectors = make(start, min(start + chunk, n)).float()
        if not bool(vectors.isfinite().all()):
            raise UserError(f"the vectors of {what} are not finite: the weights do not belong to this model")
        return {"x": vectors}

    def made() -> dict[str, Tensor]:
        if fixed is not None:
            return {"x": fixed}
        return {"x": torch.cat([cache.tensors(KIND, part, partial(checked, k))["x"] for k, part in keys.items()])}

    vectors = cache.tensors(KIND, key, made)["x"]
    for part in keys.values():
        cache.path(KIND, part, ".safetensors").unlink(missing_ok=True)
    return vectors


def _batches(
    images: Images, transform: Callable[[Image.Image], Tensor], start: int, stop: int, size: int
) -> Iterator[tuple[int, Tensor]]:
    """Batches ``(B, 3, H, W)`` and the images up to their end; the next is decoded while one is looked at."""
    ends = [(k, min(k + size, stop)) for k in range(start, stop, size)]
    with ThreadPoolExecutor(WORKERS) as pool:

        def submitted(first: int, last: int) -> Iterator[Tensor]:
            return pool.map(lambda i: transform(images.load(i)), range(first, last))

        waiting = submitted(*ends[0])
        for (_, done), following in zip(ends, [*ends[1:], None], strict=True):
            batch = torch.stack(list(waiting))
            if following is not None:
                waiting = submitted(*following)
            yield done, batch
