"""Layers that read the same tensor: each by itself, or all together as one weight, whichever is faster.

Measured for single samples only, where calls of small kernels are what takes the time. With more of them the outputs of
each layer have to be copied out of those of all, and the input compared: that costs what one packing of the input saves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from openwork.layouts.dense import TorchDense, activated
from openwork.layouts.layout import Layout
from openwork.layouts.packed import Dispatch
from openwork.layouts.siblings import Sibling, Siblings, stacked
from openwork.pack.choice import choose
from openwork.pack.decisions import MARGIN, Together
from openwork.pack.linear import Chosen, LinearTrial
from openwork.pack.memory import Memory
from openwork.timing import latencies

SINGLE = 1
"""The size of batch at which layers may share a weight."""


def together_where_faster(
    names: Sequence[str], layers: Sequence[Chosen], seconds: float, memory: Memory | None
) -> list[Together]:
    """Let layers share one weight for single samples where that beats calling them apart by more than noise.

    Args:
        names: of the layers.
        layers: what was chosen for each; shares of the common weight take the place of their layouts.
        seconds: to spend on measuring.
        memory: times that are known.

    Returns:
        What was measured, if single samples are served and a sparse layout suits the common weight best.
    """
    if not all(SINGLE in layer.by_batch for layer in layers):
        return []
    members = [Sibling(one.topology, one.values, one.bias, one.activation) for one in layers]
    trial = LinearTrial(*stacked(members), SINGLE, layers[0].weight_dtype)
    held, decision = choose(", ".join(names), trial, seconds, memory)
    if trial.forms()[decision.layout]:
        return []  # dense kernels gain nothing from rows that are stacked
    siblings = Siblings(members, type(held), SINGLE)
    times = _duel(trial, layers, siblings, seconds, memory)
    wins = times["together"] * MARGIN < times["apart"]
    if wins:
        for layer, share in zip(layers, siblings.shares(), strict=True):
            layer.by_batch[SINGLE] = share
    form = f"together, {held.name}" if wins else "apart"
    best = times["together" if wins else "apart"]
    return [Together(tuple(names), SINGLE, form, times["apart"] * 1e3, best * 1e3)]


def _duel(
    trial: LinearTrial, layers: Sequence[Chosen], siblings: Siblings, seconds: float, memory: Memory | None
) -> Mapping[str, float]:
    """Median seconds of all layers, called one after the other on the same input."""
    apart = [layer.by_batch[SINGLE] for layer in layers]
    key = json.dumps(
        [
            "siblings",
            trial.key(),
            [one.activation for one in layers],
            [[one.name, one.nbytes] for one in apart],
            siblings.layout.name,
        ]
    )
    if memory is not None and (known := memory.recall(key)):
        return known
    calls = {"apart": _calls(layers, apart, trial.x), "together": _calls(layers, siblings.shares(), trial.x)}
    measured = latencies(calls, seconds=seconds, rounds=9)
    times = {form: latency.median for form, latency in measured.items()}
    if memory is not None and all(latency.is_calm for latency in measured.values()):
        memory.remember(key, times)
    return times


def _calls(layers: Sequence[Chosen], held: Sequence[Layout], x: Tensor) -> Callable[[], object]:
    calls = [_call(layer, one, x) for layer, one in zip(layers, held, strict=True)]

    def all_of_them() -> None:
        for call in calls:
            call()

    return all_of_them


def _call(layer: Chosen, held: Layout, x: Tensor) -> Callable[[], object]:
    bias, activation = layer.bias, layer.activation
    if type(held) is TorchDense:  # that is what a layer does that is not packed: without a dispatch
        return lambda: activated(held.linear(x, bias, "none"), activation)
    dispatch = Dispatch({SINGLE: held}, x.shape[1])
    return lambda: dispatch(x, bias, activation)
