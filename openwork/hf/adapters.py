"""Adapters of peft on sparse layers: merged so that no zero is filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.layouts.layer import SparseLayer


@torch.no_grad()
def merge_adapters_(model: Any, masks: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Write the LoRA updates of a ``peft.PeftModel`` into the weights that are kept, and take the adapters off.

    The part of an update that falls on pruned places is dropped, so the outputs jump a little, as with ``lora_prune``
    (:mod:`openwork.finetune.lora`). Use it instead of ``merge_and_unload``, which fills zeros of dense layers, and cannot write
    into layers that hold only their kept weights: there it loses the update without a word.

    Args:
        model: changed in place.
        masks: parameter name in the base model -> boolean mask of the parameter's shape, for dense layers whose kept weights
            may be zero; by default what is not zero.

    Returns:
        The base model.

    Raises:
        ValueError: no adapter of it is a low-rank update of a weight.
    """
    base = model.get_base_model()
    found = 0
    for name, layer in base.named_modules():
        if not hasattr(layer, "get_delta_weight") or not hasattr(layer, "get_base_layer"):
            continue
        found += 1
        under = layer.get_base_layer()
        update = torch.stack([layer.get_delta_weight(adapter) for adapter in layer.active_adapters]).sum(0)
        if isinstance(under, SparseLayer):
            positions = under.topology.positions()
            under.weight_values.add_(update.flatten()[positions].to(under.weight_values.dtype))
        else:
            mask = (masks or {}).get(f"{name}.weight", under.weight != 0)
            under.weight += torch.where(mask, update, 0).to(under.weight.dtype)
    if not found:
        raise ValueError("the model has no low-rank updates of peft to merge")
    merged: nn.Module = model.unload()
    return merged
