"""The weights of a model that could be sparse, one way to see each of them, and why some stay dense by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from openwork.grid import Shape
from openwork.layouts.layer import SparseLayer


@dataclass(frozen=True)
class Weight:
    """One parameter of a model that could be sparse.

    Attributes:
        name: its name in ``named_parameters`` (for stored layers, the name of the dense weight it stands for).
        module: the module that owns it.
        parameter: the parameter; for a stored layer the vector of kept values.
        shape: ``[out, in, *kernel]``, whatever the order in the parameter.
        transposed: whether the parameter holds inputs first.
        reason: why it stays dense by default, or "" where it does not.
    """

    name: str
    module: nn.Module
    parameter: nn.Parameter
    shape: Shape
    transposed: bool = False
    reason: str = ""

    @property
    def stored(self) -> bool:
        """Whether only the kept connections are held."""
        return isinstance(self.module, SparseLayer)

    def oriented(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as a view ``[out, in, *kernel]``."""
        tensor = tensor.transpose(0, 1) if self.transposed else tensor
        return tensor if tuple(tensor.shape) == self.shape else tensor.view(self.shape)

    def restored(self, tensor: Tensor) -> Tensor:
        """The inverse of :meth:`oriented`: a tensor ``[out, in, *kernel]`` in the order and shape of the parameter."""
        tensor = tensor.transpose(0, 1) if self.transposed else tensor
        return tensor.reshape(self.parameter.shape)


def prunable(model: nn.Module) -> list[Weight]:
    """Every weight of a model that could be sparse, in order of appearance, with the reason where it stays dense by default."""
    model = unwrapped(model)
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((f"{prefix}.{name}" if prefix else name, module))
    found, seen = [], set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or (isinstance(module, SparseLayer) and name != "weight_values"):
                continue
            seen.add(id(parameter))
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(parameter, UninitializedParameter):
                raise ValueError(
                    f"parameter {full} has no shape yet: run the model once on an example before planning"
                )
            weight = _weight(full, module, parameter)
            if weight is not None:
                found.append(_tied(weight, owners[id(parameter)]))
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and data-parallel wrappers.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model is a torch.nn.Module; got {type(model).__name__}: the model comes first")
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


_MATRICES = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _weight(name: str, module: nn.Module, parameter: nn.Parameter) -> Weight | None:
    if isinstance(module, SparseLayer):
        name = name.removesuffix("_values")
        return Weight(name, module, parameter, module.weight_shape)
    shape = tuple(parameter.shape)
    kind = type(module).__name__
    if len(shape) < 2:
        scales = isinstance(module, _NORMS) and name.endswith("weight") and bool(shape)
        return Weight(name, module, parameter, shape, reason="norm") if scales else None
    if isinstance(module, _NORMS):
        return Weight(name, module, parameter, shape, reason="norm")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Weight(name, module, parameter, shape, reason="embedding")
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or (kind == "Conv1D" and hasattr(module, "nf")):
        return Weight(name, module, parameter, (shape[1], shape[0], *shape[2:]), transposed=True)
    if kind.endswith("Experts") and len(shape) == 3:
        return Weight(name, module, parameter, (shape[0] * shape[1], shape[2]))
    if isinstance(module, _MATRICES) and not name.rpartition(".")[2].startswith("bias"):
        return Weight(name, module, parameter, shape)
    return Weight(name, module, parameter, shape, reason=f"unknown kind of layer, {kind}")


def _tied(weight: Weight, owners: Sequence[tuple[str, nn.Module]]) -> Weight:
    others = [name for name, module in owners if module is not weight.module]
    if others and any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for _, module in owners):
        return dataclasses.replace(weight, reason=f"embedding tied with {', '.join(others)}")
    return weight
