"""Layers for the stages of a recipe: odd sizes, correlated inputs of unequal scale, float64."""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.calibrator.layer import Layer
from openwork.patterns import Unstructured
from openwork.statistics import Statistics


def inputs(tokens: int, features: int, seed: int = 0, shift: float = 0.5) -> Tensor:
    """Correlated inputs with unequal scales, a few of them large, and means that are not zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing = torch.eye(features, dtype=torch.float64) + 0.6 * normal(features, features) / features**0.5
    scales = normal(features).mul(0.8).exp()
    return (normal(tokens, features) @ mixing + shift * normal(features)) * scales


def layer(
    out: int = 11,
    features: int = 23,
    *,
    tokens: int = 150,
    seed: int = 0,
    sparsity: float = 0.0,
    x: Tensor | None = None,
    weight: Tensor | None = None,
    bias: bool = False,
    damage: float = 0.0,
) -> tuple[Layer, Tensor]:
    """A layer in the course of a recipe, and the inputs its statistics are of."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = inputs(tokens, features, seed) if x is None else x
    if weight is None:
        weight = torch.randn(out, x.shape[1], generator=generator, dtype=torch.float64)
    mask = torch.rand(weight.shape, generator=generator) >= sparsity
    damaged = weight + damage * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    statistics = Statistics(x.shape[1], gram=True, samples=x.shape[0], dtype=torch.float64)
    for part in x.split(37):
        statistics.add(part)
    b = torch.randn(weight.shape[0], generator=generator, dtype=torch.float64) if bias else None
    held = Layer(
        name="fc.weight",
        shape=tuple(weight.shape),
        dense=weight,
        weight=torch.where(mask, damaged, 0),
        mask=mask,
        dense_bias=b,
        bias=b,
        statistics=statistics,
        pattern=Unstructured(),
        kept=int(mask.sum()),
    )
    return held, x


def output_error(held: Layer, weight: Tensor, x: Tensor) -> float:
    """``||X (W - W0)^T||^2``, straight from the inputs."""
    return float((x @ (weight - held.dense).T).square().sum())
