"""Multilayer perceptrons, the wide one of the demo and LeNet-300-100 among them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from openwork.tasks.initial import seeded


def mlp(
    sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, *, seed: int | torch.Generator = 0
) -> nn.Sequential:
    """A multilayer perceptron: ``flatten, fc1, act1, fc2, ..., fcN``.

    Args:
        sizes: inputs, hidden units of every layer, outputs; such as ``[64, 1000, 1000, 10]``.
        activation: makes what stands between two layers.
        seed: of the initial weights.

    Returns:
        A model from ``[n, ...]``, flattened to ``[n, sizes[0]]``, to logits ``[n, sizes[-1]]``.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"a perceptron needs at least an input and an output size, all positive; got {list(sizes)}"
        )

    def build() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i in range(1, len(sizes)):
            layers[f"fc{i}"] = nn.Linear(sizes[i - 1], sizes[i])
            if i < len(sizes) - 1:
                layers[f"act{i}"] = activation()
        return nn.Sequential(layers)

    return seeded(build, seed)


def lenet_300_100(*, seed: int | torch.Generator = 0) -> nn.Sequential:
    """LeNet-300-100 for 28 x 28 images in ten classes (Y. LeCun et al., Gradient-based learning, 1998)."""
    return mlp([784, 300, 100, 10], seed=seed)
