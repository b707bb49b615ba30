"""A small convolutional network: two convolutions, two linear layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from openwork.tasks.initial import seeded


def conv_small(
    channels: int = 1, side: int = 28, classes: int = 10, *, seed: int | torch.Generator = 0
) -> nn.Sequential:
    """Two 3 x 3 convolutions to 32 and 64 channels, each halved by pooling, then 128 units.

    Args:
        channels: of the images.
        side: height and width of the images, a multiple of 4.
        classes: number of logits.
        seed: of the initial weights.

    Returns:
        A model from ``[n, channels, side, side]`` to ``[n, classes]``.
    """
    if side < 4 or side % 4:
        raise ValueError(f"the images are halved twice: their side must be a multiple of 4, not {side}")

    def build() -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 32, 3, padding=1),
                act1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 64, 3, padding=1),
                act2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(64 * (side // 4) ** 2, 128),
                act3=nn.ReLU(),
                fc2=nn.Linear(128, classes),
            )
        )

    return seeded(build, seed)
