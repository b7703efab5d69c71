"""Text features of a vocabulary: each name in a prompt, through CLIP's text tower, cached by content."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reproductions import UserError
from reproductions.features.clip import Clip
from reproductions.storage import Cache, content_hash

PROMPT = "A photo of a {}."
AT_ONCE = 256
"""Texts that go through the tower together."""


def prompted(names: Sequence[str], prompt: str = PROMPT) -> list[str]:
    """Each name in the prompt.

    Raises:
        UserError: there are no names, one is empty or comes twice, or the prompt has not exactly one place {}.
    """
    if prompt.count("{}") != 1:
        raise UserError(f"the prompt {prompt!r} must hold {{}} once, where a name is put")
    if not names or not all(name.strip() for name in names):
        raise UserError("a vocabulary needs at least one name, and no name may be empty")
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise UserError(f"the name {twice!r} comes twice in the vocabulary")
    return [prompt.replace("{}", name) for name in names]


@torch.no_grad()
def text_features(clip: Clip, names: Sequence[str], prompt: str = PROMPT, cache: Cache | None = None) -> Tensor:
    """Features of the names under the prompt, ``(C, d)``, not normalised and without a graph, where the tower lies.

    A cached file depends on the weights of the tower, the prompt and the names.

    Raises:
        UserError: as for ``prompted``.
    """
    texts = prompted(names, prompt)
    device = clip.model.text_projection.device

    def make() -> dict[str, Tensor]:
        parts = clip.tokenize(texts).to(device).split(AT_ONCE)
        return {"features": torch.cat([clip.text_features(ids) for ids in parts])}

    if cache is None:
        return make()["features"]
    return cache.tensors("clip_text", content_hash(clip.weights_hash(text_only=True), texts), make)["features"].to(
        device
    )
