"""Frozen vision models: one vector for an image, by the recipes of ``vision_recipes``, in float32.

Shapes: B images, H = W the side of the recipe, d the dimension of the feature.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from reproductions import UserError
from reproductions.faults import first_words
from reproductions.features.clip import open_clip_model
from reproductions.features.vision_recipes import DIMENSION, Recipe, vision_recipe
from reproductions.features.weights import FOLDER, SUFFIXES, find_weights, weights_sha256
from reproductions.storage import Cache, content_hash, source_hash

DINO_RN50 = "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
"""Published without a checksum: it is the user who fetches it."""
OFFSET = 0.1
"""What DINOv2's code adds to the new side of the grid before it divides by the old one."""
UNFIT = (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError)


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A model whose weights are loaded when the first images come.

    Attributes:
        weights: a file with them; None for the library's own, which it downloads.
        random_weights: none at all, drawn from the seed of the recipe or 0: for tests.
    """

    recipe: Recipe
    weights: Path | None = None
    random_weights: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The paper's name."""
        return self.recipe.name

    @property
    def needs_weights(self) -> bool:
        """Whether it was trained, by others."""
        return self.recipe.seed is None and self.recipe.library != "none"

    @cached_property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """An image in RGB → ``(3, H, W)``."""
        return _transform(self.recipe)

    @cached_property
    def network(self) -> nn.Module:
        """Images ``(B, 3, H, W)`` → features ``(B, d)``.

        Raises:
            UserError: weights that are not in the file, do not fit, or cannot be downloaded.
        """
        if self.random_weights or not self.needs_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.seed or 0)
                made = self._build(self.recipe, None, False)
        else:
            with _said_clearly(self.recipe, self.weights):
                made = self._build(self.recipe, self.weights, self.weights is None)
        return made.eval().requires_grad_(False).to(self.device)

    @property
    def _build(self) -> Callable[[Recipe, Path | None, bool], nn.Module]:
        return BUILDERS[self.recipe.library if self.needs_weights else self.recipe.feature]

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Features ``(B, d)`` on the CPU of images ``(B, 3, H, W)``, in full precision also on a GPU."""
        network = self.network
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features = network(batch.to(self.device))
        return features.float().cpu()

    @cached_property
    def parameters(self) -> int:
        """How many the network has, counted without making them."""
        if self.recipe.feature == "random":
            return 0
        with torch.device("meta"):
            made = self._build(self.recipe, None, False)
        return sum(p.numel() for p in made.parameters())

    def fixed(self, count: int) -> Tensor | None:
        """For random vectors, those of all images ``(count, d)``; None for features that depend on the image."""
        if self.recipe.feature != "random":
            return None
        return torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(self.recipe.seed or 0))

    def key(self, cache: Cache) -> str:
        """Hash of all that the features depend on but the images: weights, transform and the code here.

        Weights that the library downloads go by their name.
        """
        which = "the library's" if self.weights is None else weights_sha256(self.weights, cache)
        return content_hash(asdict(self.recipe), self.random_weights, which, source_hash((Path(__file__),)))


def load_vision_model(
    name: str, folder: Path | None = None, device: str = "cpu", random_weights: bool = False
) -> VisionModel:
    """A model by its name, with the weights in ``<folder>/weights`` or, without such a file, the library's own.

    Raises:
        UserError: there is no such model.
    """
    recipe = vision_recipe(name)
    return VisionModel(recipe, None if random_weights else find_weights(folder, recipe.stems), random_weights, device)


# ---------------------------------------------------------------------------------------------------------- transforms


def _transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    if recipe.feature == "random":
        return lambda image: torch.zeros(0)
    if recipe.resize != "own":
        square = Resize((recipe.side, recipe.side), InterpolationMode(recipe.resize), antialias=True)
        return Compose([square, ToTensor(), Normalize(recipe.mean, recipe.std)])
    if recipe.library == "timm":
        settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(recipe.model).to_dict())
        return timm.data.create_transform(**settings, is_training=False)
    from open_clip import image_transform

    return image_transform(recipe.side, is_train=False, mean=recipe.mean, std=recipe.std, interpolation="bicubic")


# ------------------------------------------------------------------------------------------------------------ networks


class PreLogits(nn.Module):
    """A network of timm without its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The pooled features, normalised where the network does that before its classifier."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


class Projected(nn.Module):
    """The image tower of CLIP."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, x: Tensor) -> Tensor:
        """The feature in the common space, not normalised."""
        return self.visual(x)


def resized_as_dinov2(positions: Tensor, side: int) -> Tensor:
    """DINOv2's position embedding ``(1, 1 + n², w)`` for a grid of another side: ``(1, 1 + side², w)``.

    As its released code does at 224 px: bicubic, not antialiased, at a scale that is off by ``OFFSET`` cells.
    """
    cls, patches = positions[:, :1], positions[:, 1:]
    n = round(patches.shape[1] ** 0.5)
    if n == side:
        return positions
    grid = patches.mT.reshape(1, -1, n, n)
    grid = F.interpolate(grid, scale_factor=((side + OFFSET) / n,) * 2, mode="bicubic")
    return torch.cat([cls, grid.flatten(2).mT], 1)


def _timm(recipe: Recipe, weights: Path | None, download: bool) -> nn.Module:
    options: dict[str, Any] = dict(recipe.options)
    if weights is not None:
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    model = timm.create_model(recipe.model, pretrained=download or weights is not None, **options)
    if recipe.family == "DINOv2":
        positions = resized_as_dinov2(model.pos_embed.detach(), recipe.side // model.patch_embed.patch_size[0])
        model.set_input_size(recipe.side)
        model.pos_embed = nn.Parameter(positions)
    return PreLogits(model) if recipe.feature == "pre-logits" else model


def _clip(recipe: Recipe, weights: Path | None, download: bool) -> nn.Module:
    return Projected(open_clip_model(recipe.model, weights, download=download))


def _dino_resnet(recipe: Recipe, weights: Path | None, download: bool) -> nn.Module:
    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    if weights is not None:
        model.load_state_dict(timm.models.load_state_dict(str(weights), weights_only=True))
    elif download:
        raise UserError(
            f"the weights of {recipe.name} are not downloaded, as no checksum of them is published: fetch {DINO_RN50}"
            f" and put it into {_places(recipe)} with --data DIR"
        )
    return model


def _vit(recipe: Recipe, weights: Path | None, download: bool) -> nn.Module:
    model = torchvision.models.get_model(recipe.model)
    model.heads = nn.Identity()
    return model


def _flat(recipe: Recipe, weights: Path | None, download: bool) -> nn.Module:
    return nn.Flatten()


BUILDERS: dict[str, Callable[[Recipe, Path | None, bool], nn.Module]] = {
    "timm": _timm,
    "open_clip": _clip,
    "torchvision": _dino_resnet,
    "class token": _vit,
    "pixels": _flat,
}
"""By library; by feature where there are no weights. Each takes the recipe, a file of weights, whether to download."""


@contextmanager
def _said_clearly(recipe: Recipe, weights: Path | None) -> Iterator[None]:
    """Turn what goes wrong with the weights into one sentence."""
    try:
        yield
    except UserError:
        raise
    except UNFIT as error:
        if weights is not None:
            raise UserError(f"{weights} holds no weights of {recipe.name}: {first_words(error)}") from None
        raise _no_download(recipe, error) from error
    except Exception as error:  # without a network every library fails in its own way
        raise _no_download(recipe, error) from error


def _no_download(recipe: Recipe, error: Exception) -> UserError:
    return UserError(
        f"the weights of {recipe.name} cannot be downloaded ({type(error).__name__}): put them into {_places(recipe)}"
        f" with --data DIR, ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    )


def _places(recipe: Recipe) -> str:
    return " or ".join(dict.fromkeys(f"DIR/{FOLDER}/{stem}" for stem in recipe.stems))
