"""CLIP's image and text towers (Radford et al., ICML 2021), by open_clip, with every layer within reach.

Shapes: B images, N patches, C texts, L tokens of a text, w the width of a tower, d the dimension both project to.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions import UserError
from reproductions.storage import content_hash

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels, from 0 to 1, that OpenAI's weights were trained with."""
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold among the weights."""


class ImageFeatures(NamedTuple):
    """Projected tokens of images: the class token ``(B, d)`` and the patches ``(B, N, d)``; not normalised."""

    cls: Tensor
    patches: Tensor


class Clip(nn.Module):
    """Both towers of an ``open_clip.CLIP`` whose image tower is a vision transformer with a class token.

    Images are ``(B, 3, H, W)`` of any sides that are multiples of the patch: where the grid is not the one of the
    position embedding, that is resized (bicubic). Texts are token numbers ``(C, context)``, as ``tokenize`` gives them.

    Raises:
        ValueError: the towers are of another kind.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        visual = getattr(model, "visual", None)
        if not all(hasattr(visual, part) for part in ("class_embedding", "transformer", "ln_post", "proj")):
            raise ValueError("the image tower must be open_clip's VisionTransformer")
        if type(getattr(model, "text_projection", None)) is not nn.Parameter:
            raise ValueError("the text tower must be CLIP's own, with a projection without bias")
        self.model = model

    @property
    def kappa(self) -> float:
        """κ = exp(logit scale), by which CLIP multiplies its cosines."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.model.visual.patch_size[0]

    @property
    def width(self) -> int:
        """Width w of the image tower."""
        return self.model.visual.transformer.width

    @property
    def text_width(self) -> int:
        """Width w of the text tower."""
        return self.model.transformer.width

    @property
    def dimension(self) -> int:
        """Dimension d of the common space."""
        return self.model.text_projection.shape[1]

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the image tower."""
        return self.model.visual.transformer.resblocks

    @property
    def text_blocks(self) -> nn.ModuleList:
        """The blocks of the text tower."""
        return self.model.transformer.resblocks

    def weights_hash(self, text_only: bool = False) -> str:
        """Hash of the weights of both towers, or of the text tower."""
        state = self.model.state_dict()
        chosen = [name for name in sorted(state) if not (text_only and name.startswith("visual."))]
        return content_hash(*(part for name in chosen for part in (name, state[name].cpu().float().numpy())))

    # ------------------------------------------------------------------------------------------------------- images

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ValueError: the images are no ``(B, 3, H, W)`` whose sides are multiples of the patch.
        """
        p = self.patch
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % p or images.shape[3] % p:
            raise ValueError(
                f"images must be (B, 3, H, W) with sides that are multiples of {p} px, not {tuple(images.shape)}"
            )
        return images.shape[2] // p, images.shape[3] // p

    def embed(self, images: Tensor) -> Tensor:
        """What enters the first block, ``(B, 1 + N, w)``, the class token first."""
        visual, grid = self.model.visual, self.grid(images)
        patches = visual.conv1(images).flatten(2).mT
        x = torch.cat([visual.class_embedding.expand(len(images), 1, -1).to(patches), patches], 1)
        positions = resized_positions(visual.positional_embedding, visual.grid_size, grid)
        return visual.ln_pre(x + positions.to(x.dtype))

    def layers(self, images: Tensor, chosen: Sequence[int]) -> list[Tensor]:
        """Tokens after the chosen blocks (from 0), ``(B, 1 + N, w)`` each, the class token first; not normalised.

        Raises:
            ValueError: there is no such block.
        """
        if wrong := [k for k in chosen if not 0 <= k < len(self.blocks)]:
            raise ValueError(f"the image tower has the blocks 0 … {len(self.blocks) - 1}, and {wrong[0]} was asked for")
        x, found = self.embed(images), {}
        for k in range(max(chosen, default=-1) + 1):
            x = self.blocks[k](x)
            found[k] = x
        return [found[k] for k in chosen]

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens ``(…, w)`` of any block into the common space, ``(…, d)``, as the last block's class token is."""
        visual = self.model.visual
        return visual.ln_post(tokens) @ visual.proj

    def image_features(self, images: Tensor) -> ImageFeatures:
        """The class token and the patches after the last block, projected."""
        x = self.project(self.layers(images, [len(self.blocks) - 1])[0])
        return ImageFeatures(x[:, 0], x[:, 1:])

    # -------------------------------------------------------------------------------------------------------- texts

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers, int64 ``(C, context)``; a text that is too long loses its end."""
        from open_clip.tokenizer import tokenize

        return tokenize(list(texts), self.model.context_length)

    @staticmethod
    def trimmed(ids: Tensor) -> Tensor:
        """Token numbers up to the end of the longest text, ``(C, L)``.

        Attention is causal: no text notices what stands behind its end, and CLIP pads to 77.
        """
        return ids[:, : int(ids.argmax(-1).max()) + 1]

    def embed_text(self, ids: Tensor) -> Tensor:
        """What enters the first block, ``(C, L, w)``, of token numbers ``(C, L)``."""
        return self.model.token_embedding(ids) + self.model.positional_embedding[: ids.shape[1]]

    def causal_mask(self, length: int) -> Tensor:
        """Minus infinity where a token would see a later one, ``(length, length)``."""
        return self.model.attn_mask[:length, :length]

    def read_text(self, x: Tensor, ids: Tensor) -> Tensor:
        """Features ``(C, d)``: the token that ends each text, which has the largest number, projected."""
        x = x[torch.arange(len(x), device=x.device), ids.argmax(-1)]
        return self.model.ln_final(x) @ self.model.text_projection

    def text_features(self, ids: Tensor) -> Tensor:
        """Features of texts, ``(C, d)``; not normalised."""
        ids = self.trimmed(ids)
        x = self.embed_text(ids)
        for block in self.text_blocks:
            x = block(x, attn_mask=self.causal_mask(x.shape[1]))
        return self.read_text(x, ids)


def resized_positions(positions: Tensor, stored: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Position embedding ``(1 + n, w)`` of a grid for another grid; the class token's first row stays."""
    if stored == grid:
        return positions
    patches = positions[1:].mT.reshape(1, -1, *stored)
    patches = F.interpolate(patches, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], patches[0].flatten(1).mT])


def load_clip(name: str = "ViT-B-16-quickgelu", weights: Path | None = None, seed: int = 0) -> Clip:
    """CLIP by its name in open_clip, in evaluation mode on the CPU; nothing is ever downloaded.

    Args:
        name: OpenAI's weights want the names that end in "-quickgelu".
        weights: a file with weights of both towers: OpenAI's archive, or a state dict in .pt, .pth, .bin or
            .safetensors; None for random weights.
        seed: of random weights.

    Raises:
        UserError: open_clip knows no such model, or it has no vision transformer; the file is missing, broken or of
            another model.
    """
    model = open_clip_model(name, weights, seed)
    try:
        return Clip(model).eval()
    except ValueError as error:
        raise UserError(f"{name} is not a CLIP with a vision transformer: {error}") from None


def open_clip_model(
    name: str = "ViT-B-16-quickgelu", weights: Path | None = None, seed: int = 0, download: bool = False
) -> nn.Module:
    """An ``open_clip.CLIP`` by its name there, with an image tower of either kind, in evaluation mode on the CPU.

    Args:
        name: as for ``load_clip``.
        weights: as for ``load_clip``.
        seed: of random weights.
        download: without a file, take OpenAI's weights as open_clip downloads them, with its own exceptions.

    Raises:
        UserError: open_clip knows no such model, or it is of another kind; the file is missing, broken or of another
            model.
    """
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"open_clip knows no model {name!r}; use one of its names, such as ViT-B-16-quickgelu")
    if download and weights is None:
        return open_clip.create_model(name, pretrained="openai").eval()
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = open_clip.CLIP(**{key: value for key, value in config.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is not a CLIP with a vision transformer or a ResNet: {error}") from None
    if weights is not None:
        _fill(model, read_weights(weights), weights, name)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: a TorchScript archive, a pickled state dict, bare or under "state_dict", safetensors.

    Raises:
        UserError: the file is missing, broken, or holds no state dict.
    """
    try:
        content = path.read_bytes()
    except OSError:
        raise UserError(f"there is no file of weights {path}") from None
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load(content)
        elif _is_script(content):
            with warnings.catch_warnings():  # torch advises against the format, but OpenAI's weights come in it
                warnings.filterwarnings("ignore", message=r"`torch\.jit")
                state = torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError):
        raise UserError(f"{path} is truncated or holds no weights: copy it again") from None
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path} holds no weights: a state dict of both towers of CLIP is expected")
    return {name.removeprefix("module."): x for name, x in state.items() if name not in NO_WEIGHTS}


def _is_script(content: bytes) -> bool:
    """Whether these are the bytes of a TorchScript archive, which holds code."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any("/code/" in name for name in archive.namelist())


def _fill(model: nn.Module, found: dict[str, Tensor], path: Path, name: str) -> None:
    """Put the weights into the model, in its own dtype."""
    wanted = model.state_dict()
    if missing := [k for k in wanted if k not in found]:
        raise UserError(f"{path} holds no weights of {name}: it lacks {missing[0]} and {len(missing) - 1} others")
    if unknown := [k for k in found if k not in wanted]:
        raise UserError(f"{path} holds weights of another model than {name}, such as {unknown[0]}")
    for k, x in wanted.items():
        if found[k].shape != x.shape:
            raise UserError(
                f"{path} holds weights of another model than {name}: {k} has shape {tuple(found[k].shape)},"
                f" but {tuple(x.shape)} is expected"
            )
    model.load_state_dict({k: found[k].to(x.dtype) for k, x in wanted.items()})
