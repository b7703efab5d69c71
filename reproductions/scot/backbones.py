"""The networks whose layers make hyperpixels: torchvision's ResNets and FCN as in the paper, and any of timm's.

Layers are numbered. In a ResNet, 0 is the output of the max-pooling and k that of the k-th bottleneck, after its
shortcut is added and before its last ReLU. In a network of timm, k is its k-th block, or the k-th stage of its
``feature_info`` where it has no lists of blocks; both from 0 on.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from reproductions import UserError
from reproductions.faults import first_words
from reproductions.scot.images import MEAN, STD

# Distance of the cells and side of their receptive fields, in pixels, for each first layer of a ResNet that has them.
JUMPS = (4, 4, 4, 4, 8, 8, 8, 8, 16, 16)
FIELDS = (11, 19, 27, 35, 43, 59, 75, 91, 107, 139)
RESNETS = ("resnet50", "resnet101", "fcn_resnet101")
FIELD_IN_JUMPS = 7  # of the layers of other networks; those above have 3 to 11
PROBE = 128  # side of the image that tells how far apart a layer's cells are


@dataclass(frozen=True)
class Backbone:
    """A network, its weights, and the layers it is tapped at.

    Attributes:
        name: one of ``RESNETS``, or a model of timm.
        layers: numbers of layers; the first gives the grid of cells.
        weights: a file of weights (.pth or .safetensors); None for the library's own, which it downloads; "random" for
            none, drawn from the seed 0.
        mean, std: of the pixels, from 0 to 1, that the network was trained with.
        options: of ``timm.create_model``.
    """

    name: str
    layers: tuple[int, ...]
    weights: str | Path | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    options: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def network(self) -> ResNetTaps | TimmTaps:
        """The network with its weights, in evaluation mode.

        Raises:
            UserError: no such network or layer; weights that cannot be had, read or fitted.
        """
        taps = ResNetTaps(self) if self.name in RESNETS else TimmTaps(self)
        if wrong := [k for k in self.layers if not 0 <= k < taps.depth]:
            raise UserError(f"{self.name} has the layers 0 … {taps.depth - 1}, and {wrong[0]} was asked for")
        if self.layers and self.layers[0] >= taps.usable:
            raise UserError(f"the first layer gives the cells, and of {self.name} must be below {taps.usable}")
        return taps.eval().requires_grad_(False)

    def loaded(self, model: nn.Module) -> nn.Module:
        """The model with the weights of the file."""
        if self.weights in (None, "random"):
            return model
        path = Path(str(self.weights))
        try:
            if path.suffix == ".safetensors":
                state = safetensors.torch.load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict({name: x.float() if x.is_floating_point() else x for name, x in state.items()})
        except FileNotFoundError:
            raise UserError(f"there is no file of weights {path}") from None
        except (RuntimeError, safetensors.SafetensorError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} holds no weights of {self.name}: {first_words(error)}") from None
        return model


class ResNetTaps(nn.Module):
    """A ResNet of torchvision, or the one inside its FCN, dilated."""

    body: Any
    fc: Any

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        chosen = {"weights": None} if backbone.weights is not None else {"weights": "DEFAULT"}
        torch.manual_seed(0)
        if backbone.name == "fcn_resnet101":
            model = torchvision.models.segmentation.fcn_resnet101(weights_backbone=None, **chosen)
            self.body, self.fc = backbone.loaded(model).backbone, None
        else:
            model = backbone.loaded(torchvision.models.get_model(backbone.name, **chosen))
            self.body, self.fc = model, model.fc
        self.bottlenecks = [block for k in range(1, 5) for block in getattr(self.body, f"layer{k}")]
        self.depth, self.usable = 1 + len(self.bottlenecks), len(JUMPS)
        self.jumps = (*JUMPS[:-2], 8, 8) if backbone.name == "fcn_resnet101" else JUMPS

    def geometry(self, layer: int) -> tuple[int, int]:
        """Distance of the cells and side of their receptive fields in pixels."""
        return self.jumps[layer], FIELDS[layer]

    def tapped(self, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Maps of the layers, ``(C, h, w)`` each, of an image ``(3, H, W)``."""
        maps, _ = self._run(image, max(layers))
        return [maps[k] for k in layers]

    def classified(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of the last layer ``(C, h, w)``, logits ``(classes,)``, and the head's weights ``(classes, C)``."""
        if self.fc is None:
            raise UserError("fcn_resnet101 has no classifier, so no activation maps; use resnet101, or stored masks")
        _, x = self._run(image, self.depth - 1)
        return x[0], self.fc(x.mean((-2, -1)))[0], self.fc.weight

    def _run(self, image: Tensor, last: int) -> tuple[list[Tensor], Tensor]:
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(image[None]))))
        maps = [x[0]]
        for block in self.bottlenecks[:last]:
            y = block.relu(block.bn1(block.conv1(x)))
            y = block.bn3(block.conv3(block.relu(block.bn2(block.conv2(y)))))
            y = y + (x if block.downsample is None else block.downsample(x))
            maps.append(y[0])
            x = y.relu()
        return maps, x


class TimmTaps(nn.Module):
    """A network of timm, tapped after its blocks, or after its stages."""

    model: Any

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        torch.manual_seed(0)
        try:
            self.model = timm.create_model(
                backbone.name, pretrained=backbone.weights is None, **dict(backbone.options)
            ).eval()
            backbone.loaded(self.model)
            self.blocks = _blocks(self.model)
            self.depth = self.usable = len(self.blocks or self.model.feature_info)
            with torch.no_grad():
                maps = self.tapped(torch.zeros(3, PROBE, PROBE), range(self.depth))
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise UserError(f"timm gives no feature maps of {backbone.name!r}: {error}") from None
        self.jumps = [PROBE // x.shape[-1] for x in maps]

    def geometry(self, layer: int) -> tuple[int, int]:
        """Distance of the cells and side of their receptive fields in pixels."""
        return self.jumps[layer], FIELD_IN_JUMPS * self.jumps[layer]

    def tapped(self, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Maps of the layers, ``(C, h, w)`` each, of an image ``(3, H, W)``."""
        wanted = sorted(set(layers))
        if not self.blocks:
            maps = self.model.forward_intermediates(image[None], indices=wanted, intermediates_only=True)
            found = {k: x[0] for k, x in zip(wanted, maps, strict=True)}
            return [found[k] for k in layers]
        found = {}

        def keep(k: int, x: Tensor) -> None:
            found[k] = x[0]

        hooks = [self.blocks[k].register_forward_hook(lambda module, given, x, k=k: keep(k, x)) for k in wanted]
        try:
            self.model.forward_features(image[None])
        finally:
            for hook in hooks:
                hook.remove()
        return [found[k] for k in layers]

    def classified(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of the last layer ``(C, h, w)``, logits ``(classes,)``, and the head's weights ``(classes, C)``."""
        x, head = self.model.forward_features(image[None]), self.model.get_classifier()
        if x.ndim != 4 or not isinstance(head, nn.Linear) or head.in_features != x.shape[1]:
            raise UserError(
                "activation maps want one linear layer on pooled feature maps; this network has another head"
            )
        return x[0], self.model.forward_head(x)[0], head.weight


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a convolutional network in order; none where timm keeps no lists of them."""
    stages = [*getattr(model, "blocks", []), *getattr(model, "stages", [])]
    stages += [layer for k in range(1, 5) if (layer := getattr(model, f"layer{k}", None)) is not None]
    lists = [getattr(stage, "blocks", stage) for stage in stages]
    return [block for blocks in lists if isinstance(blocks, nn.Sequential) for block in blocks]
