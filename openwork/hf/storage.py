"""How transformers reads and writes layers that hold only their kept weights.

A folder whose ``config.json`` says ``"quantization_config": {"quant_method": "openwork"}`` has in ``model.safetensors`` a file
of :func:`openwork.save`: kept values and compact indices under the model's own names, and a header with a SHA-256 of each.
Beside them are stubs, so that transformers refuses the folder where openwork was not imported.
transformers offers hooks to formats of quantisation; this page serves three of them:

- before the weights are read: prove that the file is what was written, and give each layer, which has no memory yet, places
  for the arrays that the file has of it;
- after they are read: make a :class:`~openwork.layouts.linear.SparseLinear` of the arrays of a linear layer, and the dense
  tensor, zeros included, of any other;
- before a model is written: arrays and header, as :func:`openwork.save` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from openwork.durable import FileError
from openwork.files.container import opened_together
from openwork.files.header import DTYPES, Entry, Header, weight_of
from openwork.files.reading import read_layout, read_one
from openwork.files.stubs import found_stubs, stubs
from openwork.files.writing import arranged
from openwork.layouts.linear import SparseLinear
from openwork.layouts.stored import Stored, arrays
from openwork.storage import to_dense_

METHOD = "openwork"


@register_quantization_config(METHOD)
class SparseStorageConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not annotated
    """What ``config.json`` says of a sparse folder.

    Args:
        dense: make every layer dense while loading: the same weights, and the bits that the dense model computes.
        format_version: of the header in the file, which has the last word.
    """

    def __init__(self, dense: bool = False, format_version: int = 1, **unknown: object) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ValueError(f"quantization_config of openwork has no {', '.join(unknown)}: update openwork")
        self.quant_method = METHOD
        self.dense = dense
        self.format_version = format_version


@register_quantizer(METHOD)
class SparseStorage(HfQuantizer):  # type: ignore[misc]  # transformers is not annotated
    """The hooks that transformers calls for a sparse folder. Users have no need of it."""

    requires_calibration = (
        True  # a dense model becomes sparse by a method, not by loading it with this configuration
    )

    def __init__(self, quantization_config: SparseStorageConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._folded: dict[str, _Folded] = {}

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **others: Any
    ) -> None:
        if not checkpoint_files or not all(str(file).endswith(".safetensors") for file in checkpoint_files):
            raise FileError(
                f"{model.name_or_path}: a sparse folder has its weights in safetensors files; found none"
            )
        with opened_together(checkpoint_files) as container:
            header = read_layout(container)
            # another head, or none: transformers tells what it left out
            names = _own_names(model, header.tensors)
            layers = () if self.quantization_config.dense else tuple(map(weight_of, header.sparse_layers))
            sparse = {
                own: header.tensors[name]
                for own, name in names.items()
                if header.tensors[name].kept is not None
            }
            for own in (
                sparse
            ):  # shapes first: rows without columns take no byte in a file, and a pointer each in memory
                _check(model, own, names[own], header, names[own] in layers)
            for name in names.values():
                read_one(
                    container, header, name, header.tensors[name]
                )  # it goes on only when every array is proven
            empty = found_stubs(header, container)
        known: set[str] = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or set()
        vars(model)["_keys_to_ignore_on_load_unexpected"] = known | {f"^{re.escape(name)}$" for name in empty}
        for own, entry in sparse.items():
            owner, _, parameter = own.rpartition(".")
            self._folded[own] = _Folded(model.get_submodule(owner), parameter, entry, names[own] in layers)

    def _process_model_after_weight_loading(self, model: nn.Module, **others: Any) -> nn.Module:
        for name, folded in self._folded.items():
            if hasattr(folded.module, "_hf_hook"):
                raise FileError(
                    f"{name}: sparse layers are loaded onto one device; leave device_map out, or name a single device"
                )
            layer = folded.unfold(name)
            if layer is not folded.module:
                model.set_submodule(name.rpartition(".")[0], layer)
        self._folded.clear()
        model._weight_conversions = []  # type: ignore[assignment]  # the file has the names of the model
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        to_dense_(model)
        return model if dtype is None else model.to(dtype)

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Arrays and header for ``save_pretrained``, and so for the checkpoints of ``Trainer``."""
        dense = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        content, header = arranged(model, as_is=dense)
        return content | stubs(header, content), header.metadata()

    def is_serializable(self) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """``Trainer`` trains the kept weights."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """It needs no adapters for that."""
        return True


class _Folded:
    """A layer on its way in: it has the arrays of a file in place of one parameter."""

    def __init__(self, module: nn.Module, parameter: str, entry: Entry, as_layer: bool) -> None:
        self.module, self.parameter, self.entry, self.as_layer = module, parameter, entry, as_layer
        self.dense = module.get_parameter(parameter)
        expected = arrays(entry.layout, entry.shape, DTYPES[entry.dtype], entry.kept)
        if "" in expected:  # the tensor itself
            return
        del module._parameters[parameter]
        for suffix, (dtype, shape) in expected.items():
            if suffix == "_values":
                values = torch.empty(shape, dtype=self.dense.dtype, device="meta")
                module.register_parameter(parameter + suffix, nn.Parameter(values))
            else:
                module.register_buffer(parameter + suffix, torch.empty(shape, dtype=dtype, device="meta"))
        # transformers draws what was not read at random, and looks for the parameter: it shall find it, and let it be
        stand_in = self.dense.detach()
        stand_in._is_hf_initialized = True  # type: ignore[attr-defined]
        vars(module)[parameter] = stand_in

    def unfold(self, name: str) -> nn.Module:
        """The layer as it will stay: with its dense parameter again, or the sparse layer that replaces it."""
        module, entry = self.module, self.entry
        vars(module).pop(self.parameter, None)
        found: dict[str, Tensor] = {}
        for suffix in arrays(entry.layout, entry.shape, DTYPES[entry.dtype], entry.kept):
            found[suffix] = getattr(module, self.parameter + suffix).detach()
            if suffix:
                delattr(module, self.parameter + suffix)
        device = next(iter(found.values())).device
        stored = Stored(
            name, entry.layout, entry.shape, entry.kept, {key: array.cpu() for key, array in found.items()}
        )
        if not self.as_layer:
            if "" not in found:
                module.register_parameter(self.parameter, nn.Parameter(stored.dense().to(device)))
            return module
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        layer = SparseLinear.from_values(stored.topology.to(device), stored.values.to(device), bias)
        return layer.train(module.training)


def _check(model: nn.Module, own: str, name: str, header: Header, as_layer: bool) -> None:
    """Prove that the module that has the parameter ``own`` can take what the file has under ``name``."""
    module, shape = model.get_submodule(own.rpartition(".")[0]), tuple(model.get_parameter(own).shape)
    entry, where = header.tensors[name], model.name_or_path
    if shape != entry.shape:
        raise FileError(f"{where}: {name} is {list(entry.shape)} in the file and {list(shape)} in the model")
    if as_layer and type(module) is not nn.Linear:
        raise FileError(
            f"{where}: {name} was saved from a sparse layer, but it belongs to a {type(module).__name__} here; load with "
            "dense=True"
        )


def _own_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Parameter of the model -> name in the file: models with and without a head differ by a prefix."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = {}
    for name in names:
        fitting = (n for n in (name, name.removeprefix(prefix), prefix + name) if n in own)
        if (first := next(fitting, None)) is not None:
            found[first] = name
    return found
