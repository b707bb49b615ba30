"""The weights a model starts from, drawn from a seed. The global random state is neither used nor changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int | torch.Generator, *, deviation: float | None = None) -> M:
    """Build a model and draw its weights.

    Weights of linear and convolutional layers are normal with mean 0 and variance ``2 / inputs`` (K. He et
    al., Delving deep into rectifiers, 2015, equation 10), embeddings with deviation 0.02; biases are zero;
    norms do nothing yet.

    Args:
        build: makes the model; called with no memory behind its tensors, so it must not compute with them.
        seed: of the weights, or a CPU generator to draw from.
        deviation: of all weights, instead of the variance above (0.02 in GPT-2).
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    for name, module in model.named_modules():
        _draw_(module, name, generator, deviation)
    return model


def _draw_(module: nn.Module, name: str, generator: torch.Generator, deviation: float | None) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        inputs = module.weight[0].numel()
        std = (2.0 / inputs) ** 0.5 if deviation is None else deviation
        nn.init.normal_(module.weight, std=std, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02, generator=generator)
    elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        module.reset_parameters()
    elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        raise TypeError(f"{name} is a {type(module).__name__}, for which no initial weights are defined here")
