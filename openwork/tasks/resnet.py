"""ResNet-20 for CIFAR.

K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, 2016, section 4.2: shortcuts
have no parameters ("option A"), and where the size changes they drop every other pixel and add channels of
zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.tasks.initial import seeded


class Block(nn.Module):
    """Two 3 x 3 convolutions around which the input is carried."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.grown = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        before = self.grown // 2
        carried = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.grown - before))
        return F.relu(y + carried)


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels wide; 270 thousand weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, 3, h, w]`` to logits ``[n, classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnet20(classes: int = 10, *, seed: int | torch.Generator = 0) -> ResNet20:
    """A ResNet-20 with weights drawn from ``seed``."""
    return seeded(lambda: ResNet20(classes), seed)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs, stride), Block(outputs, outputs, 1), Block(outputs, outputs, 1)
    )
