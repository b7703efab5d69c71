"""Which vision models there are, by the names of "It's a (Blind) Match!", and how each looks at an image.

32 models of Schnaus, Araslanov and Cremers (CVPR 2025), their controls, and MobileNetV2, which is small. Models are
those that were released with it; where another library gives the same features, that library is used:

- CLIP: open_clip with OpenAI's weights and QuickGELU; its own transform and side, 224 to 448 px.
- ConvNeXt: timm; its own transform; the pooled feature before the classifier.
- DeiT: timm, whose models its hub loads; the 1000 logits, of distilled models the mean of both heads.
- DINO: timm for transformers, torchvision's ResNet-50; the class token, or the pooled feature.
- DINOv2: timm at 224 px, its positions resized as the hub's code does, which timm does otherwise; the class token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from reproductions import UserError
from reproductions.features import clip

Resize = Literal["bicubic", "bilinear", "own"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """A model, its transform and its feature.

    Attributes:
        name: as in the paper.
        library, model: where it comes from and its name there; library "none" for those without a network.
        feature: "logits", "pre-logits", "class token", "projected", "pooled", "pixels" or "random".
        side: of the input, in pixels.
        resize: to a square with this interpolation, or the library's own transform with its crop.
        mean, std: of the pixels, from 0 to 1.
        stems: names of files of its weights, without their ends, by precedence.
        options: of ``timm.create_model``.
        seed: of random weights or vectors, else None.
    """

    name: str
    family: str
    library: Literal["timm", "open_clip", "torchvision", "none"]
    model: str
    feature: str
    side: int = 224
    resize: Resize = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    stems: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    seed: int | None = None

    @property
    def source(self) -> str:
        """The library and its name for the model."""
        return f"{self.library} {self.model}"


def _clip(name: str, side: int = 224, model: str = "", file: str = "") -> Recipe:
    stem = model or name.replace("/", "-")
    return Recipe(
        *(f"CLIP {name}", "CLIP", "open_clip", f"{stem}-quickgelu", "projected"),
        side=side,
        resize="own",
        mean=clip.MEAN,
        std=clip.STD,
        stems=(file or stem, stem),
    )


def _timm(name: str, family: str, model: str, feature: str, file: str, **other: Any) -> Recipe:
    return Recipe(name, family, "timm", model, feature, stems=(model, file), **other)


def _convnext(name: str, model: str, file: str, side: int = 224) -> Recipe:
    return _timm(name, "ConvNeXt", f"convnext_{model}", "pre-logits", f"convnext_{file}", side=side, resize="own")


def _deit(name: str, size: str, digest: str, side: int = 224) -> Recipe:
    model = f"deit_{size}_patch16_{side}"
    return _timm(f"DeiT-{name}", "DeiT", f"{model}.fb_in1k", "logits", f"{model}-{digest}", side=side)


def _dino(name: str, size: str, patch: int, file: str) -> Recipe:
    return _timm(
        f"DINO ViT-{name}", "DINO", f"vit_{size}_patch{patch}_224.dino", "class token", f"dino_{file}_pretrain"
    )


def _dinov2(name: str, size: str) -> Recipe:
    model, file = f"vit_{size}_patch14_dinov2.lvd142m", f"dinov2_vit{size[0]}14_pretrain"
    return _timm(f"DINOv2 ViT-{name}", "DINOv2", model, "class token", file, resize="bilinear")


_PAPER = (
    _clip("RN50"),
    _clip("RN101"),
    _clip("RN50x4", 288),
    _clip("RN50x16", 384),
    _clip("RN50x64", 448),
    _clip("ViT-B/32"),
    _clip("ViT-B/16"),
    _clip("ViT-L/14"),
    _clip("ViT-L/14@336", 336, "ViT-L-14-336", "ViT-L-14-336px"),
    _convnext("CN-B-1", "base.fb_in1k", "base_1k_224_ema"),
    _convnext("CN-B-22", "base.fb_in22k", "base_22k_224"),
    _convnext("CN-L-1", "large.fb_in1k", "large_1k_224_ema"),
    _convnext("CN-L-22", "large.fb_in22k", "large_22k_224"),
    _convnext("CN-L-22ft@384", "large.fb_in22k_ft_in1k_384", "large_22k_1k_384", 384),
    _convnext("CN-XL-22ft@384", "xlarge.fb_in22k_ft_in1k_384", "xlarge_22k_1k_384_ema", 384),
    _deit("T/16", "tiny", "a1311bcf"),
    _deit("T/16d", "tiny_distilled", "b40b3cf7"),
    _deit("S/16", "small", "cd65a155"),
    _deit("S/16d", "small_distilled", "649709d9"),
    _deit("B/16", "base", "b5f2ef4d"),
    _deit("B/16@384", "base", "8de9b5d1", 384),
    _deit("B/16d", "base_distilled", "df68dfff"),
    _deit("B/16d@384", "base_distilled", "d0272ac0", 384),
    Recipe("DINO RN50", "DINO", "torchvision", "resnet50", "pooled", stems=("dino_resnet50_pretrain",)),
    _dino("S/16", "small", 16, "deitsmall16"),
    _dino("S/8", "small", 8, "deitsmall8"),
    _dino("B/16", "base", 16, "vitbase16"),
    _dino("B/8", "base", 8, "vitbase8"),
    _dinov2("S/14", "small"),
    _dinov2("B/14", "base"),
    _dinov2("L/14", "large"),
    _dinov2("G/14", "giant"),
)
VISION_MODELS = {recipe.name: recipe for recipe in _PAPER}
"""The 32 of the paper, by its names."""

PIXELS = Recipe("Pixel values", "control", "none", "", "pixels", resize="bilinear")
MOBILENET = Recipe(
    *("MobileNetV2", "MobileNetV2", "timm", "mobilenetv2_100", "pre-logits"),
    mean=HALF,
    std=HALF,
    stems=("mobilenetv2_100_same",),
    options=(("pad_type", "same"),),
)
OTHERS = {recipe.name: recipe for recipe in (PIXELS, MOBILENET)}
RANDOM_VIT, RANDOM = "Random ViT-H/14", "Random"
_SEEDED = re.compile(rf"(?P<what>{RANDOM_VIT}|{RANDOM}), seed (?P<seed>\d{{1,18}})")
DIMENSION = 1280
"""Of the random vectors, which is that of ViT-H/14."""


def vision_recipe(name: str) -> Recipe:
    """The recipe of a name of ``VISION_MODELS`` or ``OTHERS``, or of "Random ViT-H/14, seed 3" or "Random, seed 3".

    Raises:
        UserError: there is no such model.
    """
    if found := VISION_MODELS.get(name) or OTHERS.get(name):
        return found
    if seeded := _SEEDED.fullmatch(name):
        seed = int(seeded["seed"])
        if seeded["what"] == RANDOM_VIT:
            return Recipe(name, "control", "torchvision", "vit_h_14", "class token", seed=seed)
        return Recipe(name, "control", "none", "", "random", seed=seed)
    controls = ", ".join((*OTHERS, f"{RANDOM_VIT}, seed N", f"{RANDOM}, seed N"))
    raise UserError(f"there is no vision model {name!r}: use one of {', '.join(VISION_MODELS)}; or of {controls}")
