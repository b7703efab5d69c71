"""Frozen language models: one vector for a text, by the names of "It's a (Blind) Match!", in float32.

18 of sentence-transformers, each as its modules leave the vector (some normalise it, some do not), and the text towers
of the nine CLIPs, whose texts end after 77 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from reproductions import UserError
from reproductions.features.clip import open_clip_model
from reproductions.features.vision_recipes import VISION_MODELS
from reproductions.features.weights import FOLDER, find_weights, weights_sha256
from reproductions.storage import Cache, content_hash, source_hash

SENTENCE_TRANSFORMERS = (
    "all-MiniLM-L6-v1",
    "all-MiniLM-L6-v2",
    "all-MiniLM-L12-v1",
    "all-MiniLM-L12-v2",
    "msmarco-distilbert-dot-v5",
    "average_word_embeddings_komninos",
    "all-distilroberta-v1",
    "msmarco-bert-base-dot-v5",
    "all-mpnet-base-v2",
    "all-mpnet-base-v1",
    "gtr-t5-base",
    "sentence-t5-base",
    "average_word_embeddings_glove.6B.300d",
    "gtr-t5-large",
    "sentence-t5-large",
    "All-Roberta-large-v1",
    "gtr-t5-xl",
    "sentence-t5-xl",
)
HUB = {"All-Roberta-large-v1": "all-roberta-large-v1"}
"""Names on the hub that are written in another way."""
CLIPS = tuple(recipe.name for recipe in VISION_MODELS.values() if recipe.family == "CLIP")
LANGUAGE_MODELS = SENTENCE_TRANSFORMERS + CLIPS
"""The 27 of the paper; the text tower of a CLIP has the name of its image tower."""


class Tower(Protocol):
    """What turns texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors ``(B, d)`` of B texts."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model whose weights are loaded when the first texts come.

    Attributes:
        weights: a folder as sentence-transformers saves a model, or a file of CLIP's; None for the library's own, which
            it downloads.
    """

    name: str
    weights: Path | None = None
    device: str = "cpu"

    @property
    def runs_without_download(self) -> bool:
        """Whether the weights are at hand, and the library that runs them is installed."""
        return self.weights is not None and (self.name in CLIPS or not lacking_library())

    @cached_property
    def tower(self) -> Tower:
        """The model with its weights.

        Raises:
            UserError: sentence-transformers is not installed; weights that do not fit or cannot be downloaded.
        """
        if self.name in SENTENCE_TRANSFORMERS and (reason := lacking_library()):
            raise UserError(f"{self.name} cannot run here: {reason}")
        try:
            return (ClipTexts if self.name in CLIPS else SentenceTexts)(self)
        except UserError:
            raise
        except Exception as error:  # without a network, or with half a folder, the library fails in many ways
            kind = type(error).__name__
            if self.weights is not None:
                raise UserError(f"{self.weights} holds no model {self.name} ({kind}): copy it again") from error
            where = f"DIR/{FOLDER}/{self.name}/" if self.name in SENTENCE_TRANSFORMERS else f"DIR/{FOLDER}"
            raise UserError(
                f"the language model {self.name} cannot be downloaded ({kind}): put it into {where} with --data DIR"
            ) from error

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors ``(B, d)`` on the CPU of B texts, not normalised."""
        return self.tower(texts).float().cpu()

    def key(self, cache: Cache) -> str:
        """Hash of all that the vectors depend on but the texts; weights that are downloaded go by their name."""
        which = "the library's" if self.weights is None else weights_sha256(self.weights, cache)
        return content_hash(self.name, which, source_hash((Path(__file__),)))


class SentenceTexts:
    """A model of sentence-transformers, all of its modules."""

    def __init__(self, model: LanguageModel) -> None:
        from sentence_transformers import SentenceTransformer

        source = f"sentence-transformers/{HUB.get(model.name, model.name)}"
        source = source if model.weights is None else str(model.weights)
        made: Any = SentenceTransformer(source, device=model.device, local_files_only=model.weights is not None)
        self.model, self.device = made.float().eval(), model.device  # some are stored in half precision

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors ``(B, d)``."""
        tokenize = getattr(self.model, "preprocess", None) or self.model.tokenize  # the older name, before version 6
        features = {k: x.to(self.device) if isinstance(x, Tensor) else x for k, x in tokenize(list(texts)).items()}
        return self.model(features)["sentence_embedding"]


class ClipTexts:
    """The text tower of a CLIP."""

    def __init__(self, model: LanguageModel) -> None:
        clip: Any = open_clip_model(VISION_MODELS[model.name].model, model.weights, download=model.weights is None)
        self.model, self.device = clip.requires_grad_(False).to(model.device), model.device

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors ``(B, d)``; the end of a long text is not read."""
        from open_clip.tokenizer import tokenize

        return self.model.encode_text(tokenize(list(texts), self.model.context_length).to(self.device))


def load_language_model(name: str, folder: Path | None = None, device: str = "cpu") -> LanguageModel:
    """A model by its name, with ``<folder>/weights/<name>/`` or, for a CLIP, its file there; else the library's own.

    Raises:
        UserError: there is no such model.
    """
    if name not in LANGUAGE_MODELS:
        raise UserError(f"there is no language model {name!r}: use one of {', '.join(LANGUAGE_MODELS)}")
    if name in CLIPS:
        return LanguageModel(name, find_weights(folder, VISION_MODELS[name].stems), device)
    local = None if folder is None else folder / FOLDER / name
    return LanguageModel(name, local if local is not None and local.is_dir() else None, device)


def lacking_library() -> str:
    """Why sentence-transformers cannot be used here, "" where it can."""
    if find_spec("sentence_transformers") is not None:
        return ""
    return "sentence-transformers is not installed: pip install 'matchmark[text]'"
