"""Colours and their names, an embedded set of pairs: what a colour looks like, and what a language model makes of it.

The names of the XKCD colour survey ship inside matplotlib, each with a colour. The vision side is that colour in
CIELAB, where distances are about those that people see; the language side are vectors of the bare names by
all-MiniLM-L6-v2, which ship with this project (``reproductions.datasets.embed_colours`` made them). Neither side was
made from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import XKCD_COLORS, to_rgb
from safetensors import safe_open
from skimage.color import rgb2lab
from torch import Tensor

from reproductions.storage import content_hash

LICENCE = "CC0 1.0 (names and colours); Apache 2.0 (the language model)"
SOURCE = "R. Munroe, XKCD colour survey, 2010, as matplotlib ships it; vectors by all-MiniLM-L6-v2"
VECTORS = Path(__file__).with_name("colour_names.safetensors")
BASIC = ("black", "white", "red", "green", "yellow", "blue", "brown", "purple", "pink", "orange", "grey")
"""The eleven basic colour terms (B. Berlin, P. Kay, Basic Color Terms, 1969)."""


@dataclass(frozen=True)
class Colours:
    """Colours in the order of the survey's list.

    Attributes:
        names: of the colours.
        lab: CIELAB coordinates under D65, float64 ``(n, 3)``.
        text: vectors of the names, of length 1 to half precision, float32 ``(n, 384)``.
        sha256: of names, colours and vectors.
    """

    names: tuple[str, ...]
    lab: Tensor
    text: Tensor
    sha256: str
    licence: str = LICENCE
    source: str = SOURCE

    def places(self, names: Sequence[str]) -> Tensor:
        """Where these names stand in the list, int64 ``(len(names),)``.

        Raises:
            ValueError: a name that is not in it.
        """
        position = {name: k for k, name in enumerate(self.names)}
        if unknown := [name for name in names if name not in position]:
            raise ValueError(f"no colour of this set is called {', '.join(map(repr, unknown))}")
        return torch.tensor([position[name] for name in names])


def colour_names() -> tuple[str, ...]:
    """The names of the installed matplotlib, 949 as of version 3."""
    return tuple(name.removeprefix("xkcd:") for name in XKCD_COLORS)


@cache
def load_colours() -> Colours:
    """All colours of the survey.

    Raises:
        ValueError: matplotlib ships other names than those that were embedded.
    """
    names, rgb = colour_names(), np.array([to_rgb(code) for code in XKCD_COLORS.values()])
    with safe_open(VECTORS, framework="pt") as file:
        embedded, text = file.metadata()["names_sha256"], file.get_tensor("text")
    if content_hash(names) != embedded:
        raise ValueError(
            f"the {len(names)} colour names of this matplotlib are not those that {VECTORS.name} holds vectors of: "
            "install matplotlib 3, or run python -m reproductions.datasets.embed_colours"
        )
    sha256 = content_hash(names, list(XKCD_COLORS.values()), text.numpy())
    return Colours(names, torch.from_numpy(rgb2lab(rgb)), text.float(), sha256)
