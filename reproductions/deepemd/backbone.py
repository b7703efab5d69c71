"""ResNet-12 of the few-shot literature: the encoder whose feature map gives DeepEMD its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Block(nn.Module):
    """Three 3×3 convolutions with a 1×1 shortcut, LeakyReLU(0.1), then 2×2 max-pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.relu, self.maxpool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return self.maxpool(self.relu(out))


class ResNet12(nn.Module):
    """A stack of blocks, each halving the side: ``(B, inputs, H, W)`` → ``(B, widths[-1], H/2ᵏ, W/2ᵏ)``.

    Args:
        widths: channels of the blocks; the paper's four make 84×84 images into 5×5×640.
        inputs: channels of the image.
    """

    def __init__(self, widths: Sequence[int] = (64, 160, 320, 640), inputs: int = 3) -> None:
        super().__init__()
        sizes = [inputs, *widths]
        self.widths = tuple(widths)
        for k, (a, b) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"layer{k}", nn.Sequential(Block(a, b)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        for k in range(1, len(self.widths) + 1):
            x = getattr(self, f"layer{k}")(x)
        return x
