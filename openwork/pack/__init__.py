"""Measure each layer here, choose the fastest layout, keep the best dense kernel where that is faster, and say so.

    decisions = ow.pack_(model, example_inputs)
    print(decisions)

Every linear layer and convolution is timed at the sizes of batch it really sees, each sparse layout that suits it
against every dense kernel at hand, taking turns. A layer is only replaced where the winner beats what was there by more
than the noise; a batch norm behind a convolution is folded into it. Networks of convolutions are then timed as a whole, too:
with images kept in the order of the kernels from layer to layer. Choices are remembered for this machine, so that
packing again costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openwork.layouts.conv import convolution_of, unsuited
from openwork.layouts.conv_layout import ConvLayout, Size
from openwork.layouts.layout import Layout
from openwork.layouts.packed_conv import FoldedBatchNorm2d, folded
from openwork.layouts.packed_conv import connections_of as conv_connections
from openwork.pack.behind import Behind, behind
from openwork.pack.choice import MARGIN, choose
from openwork.pack.conv import ConvTrial, packed_conv
from openwork.pack.decisions import Decision, Decisions, Whole
from openwork.pack.linear import LinearTrial, connections_of, contest, packed_linear
from openwork.pack.memory import Memory
from openwork.pack.whole import layer_by_layer_, run_whole_
from openwork.progress import track
from openwork.scores import run

__all__ = ["MARGIN", "Decision", "Decisions", "Whole", "contest", "pack_"]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.int8: 1e-1}
"""By how much of their largest value packing may change the outputs, for each dtype that weights may be rounded to."""

Change = tuple[str, nn.Module, nn.Module]
"""A module's name, what it was and what takes its place."""


@torch.no_grad()
def pack_(
    model: nn.Module,
    example_inputs: Any,
    *,
    batches: Sequence[int] | None = None,
    weight_dtype: torch.dtype = torch.float32,
    seconds: float = 0.2,
    cache: bool = True,
) -> Decisions:
    """Replace the linear layers and convolutions of ``model`` by the fastest form of each on this machine, in place.

    For inference: the model is put in evaluation mode. Its outputs are compared before and after; ``state_dict`` and
    saving work as before.

    Args:
        model: trained, sparse or not.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments. Decides
            the size of batch that each layer is measured at.
        batches: sizes of batch to serve, instead of the one of ``example_inputs``; a layer keeps the best layout for each.
        weight_dtype: the coarsest that weights of linear layers may be rounded to where that is faster. float32 rounds none.
            **bfloat16 changes results**: weights keep 8 bits of mantissa, and kernels for larger batches, dense ones among them,
            round their inputs too. **int8 changes them more**: kernels for few samples may store a weight as a whole number
            up to 127 times a scale of its row. Sums are float32 in any case. Parameters and files keep the weights as they
            are. A model whose weights are bfloat16 needs no leave to compute in bfloat16.
        seconds: to spend on measuring each layer at each size.
        cache: remember choices for this machine (in ``$OPENWORK_CACHE``, or the user's cache folder).

    Returns:
        The table of choices.

    Raises:
        TypeError: weights cannot be rounded to ``weight_dtype``.
        ValueError: the model calls no linear layer and no convolution on ``example_inputs``.
        RuntimeError: a packed layer changed the outputs by more than rounding; the model is as it was.
    """
    if weight_dtype not in TOLERANCE:
        known = ", ".join(map(str, TOLERANCE))
        raise TypeError(f"weights of packed layers are stored as one of {known}, not {weight_dtype}")
    model.eval()
    layer_by_layer_(model)
    expected, seen = _observed(model, example_inputs)
    if not seen:
        raise ValueError(
            "the model calls no nn.Linear and no nn.Conv2d on the example inputs: there is nothing to pack"
        )
    samples = _samples(example_inputs)
    memory = Memory() if cache else None
    followers = behind(model)
    decisions: list[Decision] = []
    changes: list[Change] = []
    for name, (rows, size) in track(list(seen.items()), "packing"):
        layer = model.get_submodule(name)
        after = followers.get(name, Behind())
        sizes = sorted(
            {rows} if batches is None else {max(1, round(rows / samples * batch)) for batch in batches}
        )
        if isinstance(layer, nn.Conv2d):
            wanted = [(images, *size) for images in sizes]
            new, told = _pack_conv(model, name, layer, wanted, after, seconds, memory)
        else:
            assert isinstance(layer, nn.Linear)
            new, told = _pack_linear(name, layer, sizes, after, weight_dtype, seconds, memory)
        decisions += told
        if new is not layer:
            changes.append((name, layer, new))
            if after.norm:
                norm = model.get_submodule(after.norm)
                assert isinstance(norm, nn.BatchNorm2d)
                changes.append((after.norm, norm, FoldedBatchNorm2d.of(norm)))
            if after.activation:
                changes.append(
                    (after.activation, model.get_submodule(after.activation), nn.Identity().eval())
                )
    for name, _, new in changes:
        _put(model, name, new)
    _verify(model, example_inputs, expected, changes, TOLERANCE[weight_dtype])
    if memory is not None:
        memory.write()
    return Decisions(tuple(decisions), run_whole_(model, example_inputs, batches or [samples], seconds))


def _pack_linear(
    name: str,
    layer: nn.Linear,
    sizes: Sequence[int],
    after: Behind,
    weight_dtype: torch.dtype,
    seconds: float,
    memory: Memory | None,
) -> tuple[nn.Module, list[Decision]]:
    chosen: dict[int, Layout] = {}
    told = []
    for batch in sizes:
        trial = LinearTrial(*connections_of(layer), batch, weight_dtype)
        chosen[batch], decision = choose(name, trial, seconds, memory)
        told.append(decision)
    return packed_linear(layer, chosen, after.kind), told


def _pack_conv(
    model: nn.Module,
    name: str,
    layer: nn.Conv2d,
    sizes: Sequence[Size],
    after: Behind,
    seconds: float,
    memory: Memory | None,
) -> tuple[nn.Module, list[Decision]]:
    norm = model.get_submodule(after.norm) if after.norm else None
    taken = FoldedBatchNorm2d.of(norm) if isinstance(norm, nn.BatchNorm2d) else None
    weights = folded(conv_connections(layer), taken)
    chosen: dict[Size, ConvLayout] = {}
    told = []
    for size in sizes:
        trial = ConvTrial(convolution_of(layer), weights, size)
        chosen[size], decision = choose(name, trial, seconds, memory)
        told.append(decision)
    return packed_conv(layer, chosen, after.kind, taken), told


Seen = dict[str, tuple[int, tuple[int, int]]]
"""Layer -> samples in a call, and for a convolution rows and columns of an image."""


def _observed(model: nn.Module, example_inputs: Any) -> tuple[Any, Seen]:
    """The outputs of the model, and what each of its layers saw."""
    seen: Seen = {}
    names = {
        id(module): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and not unsuited(module))
    }

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        (x, *_) = args
        if isinstance(module, nn.Conv2d):
            seen[names[id(module)]] = (x.shape[0] if x.dim() == 4 else 1, (x.shape[-2], x.shape[-1]))
        else:
            seen[names[id(module)]] = (x.numel() // max(1, x.shape[-1]), (0, 0))

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if id(m) in names]
    try:
        return run(model, example_inputs), {name: what for name, what in seen.items() if what[0]}
    finally:
        for handle in handles:
            handle.remove()


def _samples(inputs: Any) -> int:
    """The size of batch of the example inputs: the first axis of the first tensor."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    parts = (
        inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else ()
    )
    return next((_samples(part) for part in parts if isinstance(part, Tensor)), 1)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _verify(
    model: nn.Module, example_inputs: Any, expected: Any, changes: Sequence[Change], tolerance: float
) -> None:
    outputs = run(model, example_inputs)
    for before, after in zip(_tensors(expected), _tensors(outputs), strict=True):
        scale = before.abs().max().clamp(min=1e-12)
        error = float(((before - after).abs().max() / scale).float()) if before.numel() else 0.0
        if error > (tolerance if before.dtype in (torch.float32, torch.float64) else max(tolerance, 3e-2)):
            for name, old, _ in changes:
                _put(model, name, old)
            raise RuntimeError(
                f"packing changed the outputs by {error:.2e} of their largest value, more than rounding explains; the model was "
                "put back as it was. Please report this with the model's shapes"
            )


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = (
        outputs.values()
        if isinstance(outputs, dict)
        else outputs
        if isinstance(outputs, (tuple, list))
        else ()
    )
    return [t for part in parts for t in _tensors(part)]
