"""Measure each layer here, choose the fastest layout, keep the best dense kernel where that is faster, and say so.

    decisions = ow.pack_(model, example_inputs)
    print(decisions)

Every linear layer and convolution is timed at the sizes of batch it really sees, each sparse layout that suits it
against every dense kernel at hand, taking turns. A layer is only replaced where the winner beats what was there by more
than the noise; a batch norm behind a convolution is folded into it. Layers that read the same tensor are timed together,
too: as one weight; and networks of convolutions as a whole: with images kept in the order of the kernels from layer to
layer. Choices are remembered for this machine, so that packing again costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from openwork.layouts.packed_conv import FoldedBatchNorm2d
from openwork.pack.agreement import TOLERANCE, check_agreement
from openwork.pack.behind import Behind, behind
from openwork.pack.chains import chain_where_faster_
from openwork.pack.compiled import PACKED, dense_copy, race_compiled
from openwork.pack.contests import Contests
from openwork.pack.decisions import MARGIN, Chained, Compiled, Decision, Decisions, Together, Whole
from openwork.pack.linear import Chosen, contest
from openwork.pack.memory import Memory
from openwork.pack.observed import check_inputs, observed, readers, samples_of
from openwork.pack.whole import layer_by_layer_, run_whole_
from openwork.progress import track
from openwork.scores import run

__all__ = ["MARGIN", "Chained", "Compiled", "Decision", "Decisions", "Together", "Whole", "contest", "pack_"]

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
    compiled: bool = False,
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
        compiled: time the dense model under ``torch.compile`` as well, and say which is faster (:attr:`Decisions.compiled`). That
            takes tens of seconds, a second copy of the weights, and a C++ compiler; what ``torch.compile`` made before in this
            process is made anew at its next call. It changes nothing about what is packed: a compiled model is another object,
            which is yours to keep. Without it the promise is made against dense kernels called layer after layer.

    Returns:
        The table of choices.

    Raises:
        TypeError: weights cannot be rounded to ``weight_dtype``, or there is no tensor in ``example_inputs``.
        ValueError: the model calls no linear layer and no convolution on ``example_inputs``; or ``compiled`` is asked of one
            that was packed before.
        RuntimeError: a packed layer changed the outputs by more than rounding; the model is as it was.
    """
    if weight_dtype not in TOLERANCE:
        known = ", ".join(map(str, TOLERANCE))
        raise TypeError(f"weights of packed layers are stored as one of {known}, not {weight_dtype}")
    check_inputs(example_inputs)
    dense = dense_copy(model) if compiled else None
    model.eval()
    layer_by_layer_(model)
    expected, uses = observed(model, example_inputs)
    if not uses:
        raise ValueError(
            "the model calls no nn.Linear, nn.Conv2d or Conv1D on the example inputs, or on no samples: there is nothing to "
            "pack. Pass a batch as the model will see it."
        )
    samples = samples_of(example_inputs)
    memory = Memory() if cache else None
    contests = Contests(seconds, memory)
    sizes = {
        name: sorted(
            {use.samples}
            if batches is None
            else {max(1, round(use.samples / samples * batch)) for batch in batches}
        )
        for name, use in uses.items()
    }
    followers = behind(model)
    decisions: list[Decision] = []
    changes: list[Change] = []
    linear: dict[str, Chosen] = {}
    for name, use in track(list(uses.items()), "packing"):
        layer = model.get_submodule(name)
        after = _behind(layer, followers.get(name))
        if not isinstance(layer, nn.Conv2d):
            linear[name], told = contests.linear(name, layer, sizes[name], after, weight_dtype)
        else:
            norm = model.get_submodule(after.norm) if after.norm else None
            assert norm is None or isinstance(norm, nn.BatchNorm2d)
            wanted = [(images, *use.size) for images in sizes[name]]
            new, told = contests.conv(name, layer, wanted, after, norm)
            changes += _change(model, name, layer, new, after)
        decisions += told
    together = contests.siblings([names for names in readers(uses) if names[0] in linear], linear)
    for name, chosen in linear.items():
        after = _behind(chosen.layer, followers.get(name))
        changes += _change(model, name, chosen.layer, chosen.packed(), after)
    for name, _, new in changes:
        _put(model, name, new)
    try:
        check_agreement(expected, run(model, example_inputs), weight_dtype)
    except RuntimeError:
        for name, old, _ in changes:
            _put(model, name, old)
        raise
    chained = chain_where_faster_(model, example_inputs, seconds)
    whole = run_whole_(model, example_inputs, batches or [samples], seconds, memory)
    if memory is not None:
        memory.write()
    raced = () if dense is None else race_compiled(dense, model, example_inputs, batches, seconds)
    return Decisions(tuple(decisions), whole, together, chained, raced)


def _behind(layer: nn.Module, found: Behind | None) -> Behind:
    """What a layer can take over; one that was packed before has what it has."""
    return Behind() if found is None or isinstance(layer, PACKED) else found


def _change(model: nn.Module, name: str, layer: nn.Module, new: nn.Module, after: Behind) -> Iterator[Change]:
    """What changes where a layer takes over what stands behind it."""
    if new is layer:
        return
    yield name, layer, new
    if after.norm:
        norm = model.get_submodule(after.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        yield after.norm, norm, FoldedBatchNorm2d.of(norm)
    if after.activation:
        yield after.activation, model.get_submodule(after.activation), nn.Identity().eval()


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
