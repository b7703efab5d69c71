"""Sentences that the name of a class is put into, of the notebook that came with CLIP (Radford et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Sequence

_CIFAR_ENDINGS = (
    "photo of {} {{}}.",
    "blurry photo of {} {{}}.",
    "black and white photo of {} {{}}.",
    "low contrast photo of {} {{}}.",
    "high contrast photo of {} {{}}.",
    "bad photo of {} {{}}.",
    "good photo of {} {{}}.",
    "photo of {} small {{}}.",
    "photo of {} big {{}}.",
)
CIFAR = tuple(f"a {ending.format(article)}" for article in ("a", "the") for ending in _CIFAR_ENDINGS)
"""The 18 templates for CIFAR-10 and CIFAR-100."""
IMAGENET = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The 7 templates for ImageNet that the notebook's search leaves; "itap" is "I took a picture"."""


def sentences(names: Sequence[str], templates: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For each name, it in each of the templates."""
    return tuple(tuple(template.replace("{}", name) for template in templates) for name in names)
