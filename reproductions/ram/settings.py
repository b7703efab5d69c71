"""What RAM is made of: its stages as switches, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from reproductions.features.text_features import PROMPT
from reproductions.ram.kcot import Kcot

Matching = Literal["pooling", "max", "attention", "ct", "ot", "kcot"]


@dataclass(frozen=True, kw_only=True)
class RamSettings:
    """RAM's stages, to the values published for COCO.

    Attributes:
        matching: how regions count for a label. All are plans of mass 1 without a gradient, with column sums 1/C:
            "pooling" 1/(N C), "max" 1/C at the best region, "attention" softmax_n(κ sim)/C, "ot" with all regions
            alike, "kcot" with the region weights; but "ct", the mean of softmax_c(κ sim)/N and of the attention, gives
            more mass to labels that more regions resemble.
        teacher: in training the plan is drawn to the frozen tower's prior; only those of "ot" and "kcot" can be.
        adapter: adapters and learned image tokens at ``layers``; without, the image side is frozen.
        layers: blocks of the image tower, from 0.
        image_tokens: learned tokens of each.
        text_layers: blocks of the text tower with learned tokens, from 0; 6 … 11 for NUS-WIDE; none for a frozen one.
        text_tokens: learned tokens of each.
        tau_local: τ_l in the beginning; 2·10⁻⁴ for NUS-WIDE. τ_g starts at 1/κ.
        kcot: of the plan.
        prompt: what a label's name is put in.

    Raises:
        ValueError: an unknown matching, a teacher where nothing is transported, a temperature that is not positive.
    """

    matching: Matching = "kcot"
    teacher: bool = True
    adapter: bool = True
    layers: tuple[int, ...] = (9, 10, 11)
    image_tokens: int = 8
    text_layers: tuple[int, ...] = (9, 10, 11)
    text_tokens: int = 4
    tau_local: float = 2e-3
    kcot: Kcot = field(default_factory=Kcot)
    prompt: str = PROMPT

    def __post_init__(self) -> None:
        if self.matching not in get_args(Matching):
            raise ValueError(f"matching must be one of {', '.join(get_args(Matching))}, not {self.matching!r}")
        if self.teacher and self.matching not in ("ot", "kcot"):
            raise ValueError(f"a teacher is for transport: matching={self.matching!r} takes teacher=False")
        if not self.tau_local > 0:
            raise ValueError(f"tau_local must be positive, not {self.tau_local!r}")
