"""What new connections start from.

A dense initialisation under a mask is too small: a unit that lost its inputs sums fewer terms, and the signal shrinks by the
square root of the density in every layer. Correcting each unit for the inputs it really has restores it
(Evci et al., Gradient Flow in Sparse Neural Networks, 2022, arXiv 2010.03533). Connections grown later start at zero.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Init = Literal["rescale", "kaiming", "keep"]
"""``rescale``: the model's own initial weights times ``sqrt(fan_in / inputs kept by the unit)``, so that its distribution,
seed and gain are respected. ``kaiming``: drawn anew from ``N(0, 2 / inputs kept by the unit)``. ``keep``: left as they are,
for networks that are trained already."""


def initial_values(
    values: Tensor, units: Tensor, shape: tuple[int, ...], init: Init, generator: torch.Generator
) -> Tensor:
    """Initial values of the kept connections of one parameter.

    Args:
        values: ``[kept]``, the model's weights at the kept positions; not changed.
        units: int64 ``[kept]``, the output unit of each connection.
        shape: ``[out, in, *kernel]`` of the parameter.
        init: see :data:`Init`.
        generator: CPU generator, used by ``kaiming`` only.

    Returns:
        Tensor like ``values``. Units without inputs have no connections and need nothing.
    """
    if init == "keep":
        return values.clone()
    inputs = torch.bincount(units, minlength=shape[0]).to(torch.float64)[units]
    if init == "kaiming":
        drawn = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values.device)
        return (drawn * (2.0 / inputs).sqrt()).to(values.dtype)
    if init == "rescale":
        return (values * (math.prod(shape[1:]) / inputs).sqrt()).to(values.dtype)
    raise ValueError(f"unknown init {init!r}: choose rescale, kaiming or keep")
