"""From masked to stored and back: hold all weights under a mask, or only the kept ones.

Both storages work under the same methods and take the same decisions. Stored layers have parameters, gradients and optimizer
state of the size of the kept connections, and compute with them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from openwork.initialization import initial_values
from openwork.layouts.chain import chain_, unchain_
from openwork.layouts.collapsible import CollapsibleConv2d
from openwork.layouts.csr import CSR, described
from openwork.layouts.forms import STORABLE, storable, stored
from openwork.layouts.layer import SparseLayer
from openwork.layouts.stored import matrix
from openwork.layouts.structured import StructuredLinear
from openwork.plan import Row, plan
from openwork.plan.globs import require_several
from openwork.sparsifier import Training
from openwork.weights import Weight, prunable


def to_sparse_(
    model: nn.Module, topology: Training | Mapping[str, Tensor] | None = None, *, whole: Sequence[str] = ()
) -> dict[str, CSR]:
    """Replace the linear layers, convolutions and embeddings of ``model`` by layers that hold only their kept connections, in
    place.

    Call it before the optimizer is made: the layers have new parameters.

    Args:
        model: any module. Layers of other kinds, convolutions in groups or with dilation, and what stays dense in the plan are
            left alone. Embeddings stay dense unless a mask is given for them or the method includes them by name.
        topology: where connections are kept:

            - a training method: its own initial topology and initialisation, exactly those that :func:`openwork.attach` would
              make; attach the same method afterwards;
            - a mapping of parameter names to boolean masks of their shape, such as ``sparsifier.masks`` or ``pruned.masks``;
            - None: wherever the weight is not zero.
        whole: globs of parameters that keep all their connections and are held as the others are. Worth it for a small last
            layer, such as 1000 to 10: it then is part of the chain (:func:`openwork.chain_`), where it takes less than a tenth of
            the time that dense kernels take for so few outputs. Keep it out of the method with ``exclude``.

    Returns:
        Parameter name -> topology of each layer that was replaced.

    Raises:
        ValueError: no layer can be replaced, a mask fits none, or a glob of ``whole`` matches none that is left; nothing has
            changed then.
    """
    if storable(model):
        raise ValueError(
            "the model is itself the layer to replace: use SparseLinear.from_linear(linear, mask), "
            "SparseConv2d.from_conv(conv, mask) or SparseEmbedding.from_embedding(embedding, mask)"
        )
    candidates = {w.name: w for w in prunable(model) if storable(w.module) and not _shared(model, w)}
    made: dict[str, SparseLayer[Any]]
    if isinstance(topology, Training):
        rows = [row for row in topology.start(plan(model, topology)).sparse if row.name in candidates]
        made = {row.name: _started(row, topology) for row in rows}
    else:
        if topology is None:
            topology = {n: w.parameter.detach() != 0 for n, w in candidates.items() if not w.reason}
        made = {n: stored(w.module, mask) for n, (w, mask) in _fitting(topology, candidates).items()}
    if not made:
        raise ValueError(
            f"the model has no layer that could hold only its kept connections: those are {STORABLE}, the last "
            "only where it is named"
        )
    made |= _held_whole(whole, {n: w for n, w in candidates.items() if n not in made and not w.reason})
    for name, layer in made.items():
        _swap(model, candidates[name].module, layer)
    chain_(model)
    return {name: layer.topology for name, layer in made.items()}


def _started(row: Row, method: Training) -> SparseLayer[Any]:
    """The layer as ``method`` would begin with it."""
    generator = method.generator(row.name)
    positions = method.topology(row, generator)
    positions = torch.arange(row.numel) if positions is None else positions
    positions = positions.to(row.weight.parameter.device)
    layer = stored(row.weight.module, CSR.from_positions(positions, matrix(row.shape)))
    with torch.no_grad():
        units = positions // (row.numel // row.shape[0])
        values = layer.weight_values
        values.copy_(initial_values(values, units, row.shape, method.init, generator))
    return layer


def _held_whole(globs: Sequence[str], candidates: Mapping[str, Weight]) -> dict[str, SparseLayer[Any]]:
    """The layers that keep all their connections."""
    require_several("whole", globs)
    found = {}
    for glob in globs:
        names = [name for name in candidates if fnmatchcase(name, glob)]
        if not names:
            raise ValueError(
                f"whole: {glob!r} matches none of the layers that would stay dense and could hold their connections: "
                f"{', '.join(candidates) or 'there are none'}"
            )
        for name in names:
            module = candidates[name].module
            found[name] = stored(module, torch.ones_like(candidates[name].parameter, dtype=torch.bool))
    return found


def _fitting(
    masks: Mapping[str, Tensor], candidates: Mapping[str, Weight]
) -> dict[str, tuple[Weight, Tensor]]:
    """Each mask with the weight it is for."""
    if unknown := masks.keys() - candidates.keys():
        raise ValueError(
            f"masks are given for {', '.join(sorted(unknown))}; the layers that can hold only their kept connections "
            f"are {', '.join(candidates) or 'none'}"
        )
    for name, mask in masks.items():
        if mask.dtype != torch.bool or tuple(mask.shape) != candidates[name].shape:
            raise ValueError(
                f"the mask of {name} must be boolean of shape {list(candidates[name].shape)}; got {described(mask)}"
            )
    return {name: (candidates[name], mask) for name, mask in masks.items()}


def to_dense_(model: nn.Module) -> dict[str, Tensor]:
    """Replace the layers that hold only their kept connections by ordinary dense layers with exact zeros, in place.

    Layers in another form (:func:`openwork.restructure_`) are multiplied out.

    Returns:
        Parameter name -> boolean mask of its shape: what is kept, active zeros included; of sparse layers only.
    """
    masks = {}
    for module in list(model.modules()):
        if isinstance(module, StructuredLinear):
            _swap(model, module, _multiplied_out(module).train(module.training))
        elif isinstance(module, CollapsibleConv2d):
            _swap(model, module, module.collapsed())
    for w in prunable(model):
        if isinstance(w.module, SparseLayer):
            masks[w.name] = w.module.topology.mask().view(w.shape)
            _swap(model, w.module, w.module.to_dense())
    unchain_(model)
    return masks


def _multiplied_out(layer: StructuredLinear) -> nn.Linear:
    with torch.no_grad():
        weight = layer.dense()
    dense: nn.Linear = nn.utils.skip_init(
        nn.Linear,
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        dtype=weight.dtype,
        device=weight.device,
    )
    dense.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach().clone())
    return dense


def _shared(model: nn.Module, weight: Weight) -> bool:
    """Whether several layers have this very parameter: replacing one of them would untie them."""
    owners = [m for m in model.modules() for p in m.parameters(recurse=False) if p is weight.parameter]
    return len(owners) > 1


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands in the model."""
    for parent in list(model.modules()):
        for name, child in list(
            parent._modules.items()
        ):  # named_children would show a layer in one place only
            if child is old:
                setattr(parent, name, new)
