"""Folders of quantised models that other engines read, in the ``pack-quantized`` format of compressed-tensors.

Codes of 1 to 8 bits follow one another without gaps in words of 32 bits, scales are in the precision of the model, and
``quantization_config`` in ``config.json`` says which layers are held so. vLLM and transformers load such a folder (transformers
with the package ``compressed-tensors`` installed).

The sparse formats of that package, bitmask and 2:4, have been withdrawn: a pruned model that is quantised is written like any
other, its zeros are codes that decode to exactly zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from openwork.calibrator.report import Calibration
from openwork.durable import FileError
from openwork.files.container import write
from openwork.files.names import plain_state, shared_names
from openwork.hf.folder import WEIGHTS, appearing
from openwork.layouts.layer import SparseLayer
from openwork.quantization import IntegerGrid, Quantized
from openwork.quantization.codes import pack

FORMAT = "pack-quantized"


def export_quantized(
    model: Any, calibration: Calibration, folder: str | os.PathLike[str], *, tokenizer: Any = None
) -> None:
    """Write a quantised model as a folder that other engines read; the model does not change.

    Args:
        model: a ``transformers.PreTrainedModel`` as a recipe with :class:`openwork.RTN`, :class:`openwork.GPTQ` or another
            quantiser of integers left it. Weights that have no codes are written as they are.
        calibration: what the recipe returned.
        folder: to write; there must be nothing yet.
        tokenizer: to save beside it.

    Raises:
        FileError: the folder exists and is not empty, nothing is quantised, or a layer is in a way that the format does not
            hold: floats, outliers, groups that do not divide the inputs, or groups in another order.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise FileError(
            f"a folder holds a model of transformers, not a {type(model).__name__}; see openwork.to_quantized_ and openwork.save"
        )
    state = plain_state(model)
    shared = shared_names(state)
    arrays: dict[str, Tensor] = {}
    schemes: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        if isinstance(value, SparseLayer):
            raise FileError(f"{name} holds only its kept connections: use to_dense_ before exporting")
        parts = calibration.parts.get(name, {})
        quantized = parts.get("quantized")
        if isinstance(quantized, Quantized):
            layer = name.removesuffix(".weight")
            schemes[layer] = _scheme(name, quantized, parts, model.get_submodule(layer))
            arrays |= {f"{layer}.{key}": array for key, array in packed(quantized, value.dtype).items()}
            found = decoded(quantized, value.dtype).to(value.device)
            if not torch.equal(found, value):
                raise FileError(
                    f"the weights of {name} are not those of its codes in {value.dtype}: quantise with scales='bfloat16' or "
                    "'float16' in a model of that precision, and export before anything else changes them"
                )
        elif name not in shared:
            arrays[name] = value.detach().cpu()
    if not schemes:
        raise FileError(
            "no linear layer has codes in this calibration: its recipe needs a quantiser, such as ow.GPTQ()"
        )
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    with appearing(Path(folder)) as unfinished:
        config.quantization_config = quantization_config(model, schemes)
        try:
            config.save_pretrained(unfinished)
        finally:
            del config.quantization_config
        if model.can_generate():
            model.generation_config.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        write(unfinished / WEIGHTS, arrays, {"format": "pt"})


def packed(quantized: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays of one layer, by suffix.

    Args:
        quantized: codes ``[out, in]`` on an integer grid.
        dtype: of the scales.
    """
    grid, codes = quantized.grid, quantized.codes.cpu()
    rows = codes.shape[0]
    scale = quantized.at.scale.cpu().expand(rows, -1)
    arrays = {
        "weight_packed": _words(codes, grid.bits),
        "weight_scale": scale.to(dtype).contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }
    if isinstance(grid, IntegerGrid) and not grid.symmetric:
        zero = quantized.at.zero.cpu().expand(rows, -1).to(torch.uint8)
        arrays["weight_zero_point"] = _words(zero.T.contiguous(), grid.bits).T.contiguous()
    return arrays


def decoded(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """The weight as readers of the format decode it: with scales of ``dtype``."""
    at = quantized.placement()
    return ((quantized.codes.float() - at.zero).to(dtype) * at.scale.to(dtype)).to(dtype)


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes ``[rows, n]`` as int32 ``[rows, ceil(n * bits / 32)]``."""
    stream = pack(codes, bits)
    return nn.functional.pad(stream, (0, -stream.shape[1] % 4)).view(torch.int32)


def _scheme(name: str, quantized: Quantized, parts: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """How a layer is quantised, in the words of the format."""
    grid, inputs, groups = quantized.grid, quantized.codes.shape[1], quantized.at.scale.shape[1]
    size = int((quantized.group_of == 0).sum())
    why = None
    if type(module) is not nn.Linear:
        why = f"it belongs to a {type(module).__name__}, and the format holds nn.Linear"
    elif not isinstance(grid, IntegerGrid) or not grid.holds_zero:
        why = f"it is on {grid}, and the format holds integers with whole zero points"
    elif "outliers" in parts:
        why = "it has outliers beside its codes"
    elif size * groups != inputs:
        why = f"its {inputs} inputs do not split into equal groups of {size}"
    elif not torch.equal(quantized.group_of.cpu(), torch.arange(inputs) // size):
        why = "its groups are no neighbours: quantise with static_groups=True"
    if why is not None:
        raise FileError(f"{name} cannot be written as {FORMAT}: {why}")
    assert isinstance(grid, IntegerGrid)
    weights: dict[str, Any] = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric}
    if groups == 1:
        return weights | {"strategy": "channel"}
    return weights | {"strategy": "group", "group_size": size}


def quantization_config(model: nn.Module, schemes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``config.json`` says: each way of quantising with its layers, and the linear layers that are not quantised."""
    groups: list[tuple[Mapping[str, Any], list[str]]] = []
    for layer, scheme in schemes.items():
        same = next((layers for known, layers in groups if known == scheme), None)
        if same is None:
            groups.append((scheme, [layer]))
        else:
            same.append(layer)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    alone = len(groups) == 1  # then engines that fuse layers need no names
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": ["Linear"] if alone else layers,
                "weights": dict(scheme),
                "input_activations": None,
                "output_activations": None,
                "format": FORMAT,
            }
            for i, (scheme, layers) in enumerate(groups)
        },
        "ignore": [name for name in linear if name not in schemes],
    }
