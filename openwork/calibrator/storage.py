"""From decoded weights to codes: layers that hold what a quantiser found, in as many bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.calibrator.report import Calibration
from openwork.kernels.code_groups import GROUP
from openwork.kernels.group_int4 import pack_codes
from openwork.layouts.csr import CSR
from openwork.layouts.group_int4 import GroupInt4Linear
from openwork.layouts.quantized import QuantizedLinear
from openwork.matrices import Matrix, matrices
from openwork.quantization import IntegerGrid, Quantized
from openwork.quantization.grids import SCALES
from openwork.weights import prunable, unwrapped


def to_quantized_(model: nn.Module, calibration: Calibration) -> dict[str, GroupInt4Linear | QuantizedLinear]:
    """Replace the quantised linear layers of ``model`` by layers that hold codes, in place, for inference.

    Groups of 16 inputs in 4 bits with scales of 16 bits, as :class:`openwork.GQSA` makes them, become a
    :class:`~openwork.layouts.group_int4.GroupInt4Linear`, which computes with them directly and stores kept groups only; all
    others a :class:`~openwork.layouts.quantized.QuantizedLinear`. Layers that are no plain ``nn.Linear`` stay as they are.

    Args:
        model: as the recipe left it.
        calibration: what the recipe returned.

    Returns:
        Parameter name -> the layer that now holds it.

    Raises:
        ValueError: nothing can be replaced, or the weights of a layer are not those of its codes any more. The model has
            not changed then.
    """
    model = unwrapped(model)
    layers = {m.name: m for weight in prunable(model) for m in matrices(weight)}
    made: dict[str, GroupInt4Linear | QuantizedLinear] = {}
    for name, parts in calibration.parts.items():
        m, quantized = layers.get(name), parts.get("quantized")
        if m is None or not isinstance(quantized, Quantized) or type(m.weight.module) is not nn.Linear:
            continue
        made[name] = _held(m, quantized, calibration.masks[name], parts)
    if not made:
        raise ValueError(
            "no nn.Linear of the model has codes in this calibration: its recipe needs a quantiser, such as ow.GPTQ()"
        )
    for name, layer in made.items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        model.get_submodule(parent).register_module(child, layer.train(layers[name].weight.module.training))
    return made


def _held(
    m: Matrix, quantized: Quantized, mask: Tensor, parts: Mapping[str, Any]
) -> GroupInt4Linear | QuantizedLinear:
    bias = None if m.bias is None else m.bias.detach()
    layer: GroupInt4Linear | QuantizedLinear
    if in_groups_of_int4(quantized) and "outliers" not in parts:
        layer = group_int4(quantized, mask, bias)
    else:
        layer = QuantizedLinear(
            quantized, bias, statistics=parts.get("statistics"), outliers=parts.get("outliers")
        )
    weight = m.weight.parameter.detach()
    if not torch.equal(layer.weight.to(weight.dtype), weight):
        raise ValueError(
            f"the weights of {m.name} are not those of its codes: something changed them since calibration"
        )
    return layer


def in_groups_of_int4(quantized: Quantized) -> bool:
    """Whether the kernel for groups of 16 inputs in 4 bits can compute with these codes."""
    grid = quantized.grid
    return (
        isinstance(grid, IntegerGrid)
        and grid.bits == 4
        and SCALES[grid.scales].itemsize == 2
        and torch.equal(quantized.group_of.cpu(), torch.arange(quantized.group_of.numel()) // GROUP)
    )


def group_int4(quantized: Quantized, mask: Tensor, bias: Tensor | None = None) -> GroupInt4Linear:
    """The layer of kept groups: those with any kept weight.

    Args:
        quantized: codes in groups of 16 inputs.
        mask: boolean ``[out, in]``, True = kept; the codes of the others are those of zero.
        bias: ``[out]`` or None.
    """
    rows, inputs = quantized.codes.shape
    filling = (0, -inputs % GROUP)
    kept = nn.functional.pad(mask, filling).view(rows, -1, GROUP).any(2)
    cells = nn.functional.pad(quantized.codes, filling).view(rows, -1, GROUP)[kept]
    dtype = SCALES[quantized.grid.scales] if isinstance(quantized.grid, IntegerGrid) else torch.float16
    scales, zeros = (t[kept].to(dtype) for t in (quantized.at.scale, quantized.at.zero))
    topology = CSR.from_mask(kept)
    held = None if bias is None else bias.float()
    return GroupInt4Linear(
        pack_codes(cells), scales, zeros, topology.crow, topology.col, in_features=inputs, bias=held
    )
