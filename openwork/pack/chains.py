"""Chains of packed layers: kept where the whole model is faster with them than without."""

from __future__ import annotations

from typing import Any

from torch import nn

from openwork.layouts.chain import Chain, chain_, unchain_
from openwork.pack.decisions import MARGIN, Chained
from openwork.pack.lines import lines, straighten_, unstraighten_
from openwork.scores import run
from openwork.timing import latencies


def chain_where_faster_(model: nn.Module, example_inputs: Any, seconds: float) -> Chained | None:
    """Let the layers of ``model`` hand their activations on in tiles if that makes it faster by more than noise, in place
    (:class:`openwork.layouts.chain.Chain`).

    Args:
        model: packed.
        example_inputs: what it is called with.
        seconds: to spend on measuring, about.

    Returns:
        What was measured; None where there is nothing to chain.
    """
    unchain_(model)
    unstraighten_(model)
    chain_(model)
    chains = {name: module for name, module in model.named_modules() if type(module) is Chain}
    straight = lines(model)
    if not chains and not straight:
        return None

    def layers() -> object:
        for chain in chains.values():
            Chain.release(chain)
        unstraighten_(model)
        return run(model, example_inputs)

    def chained() -> object:
        for chain in chains.values():
            Chain.adopt(chain)
        straighten_(straight)
        return run(model, example_inputs)

    times = latencies({"layers": layers, "chained": chained}, seconds=seconds, rounds=9)
    with_chains, without = times["chained"].median * 1e3, times["layers"].median * 1e3
    names = tuple(sorted({*chains, *straight}))
    if with_chains * MARGIN < without:
        chain_(model)
        straighten_(straight)
        return Chained(names, "chained", without, with_chains)
    unchain_(model)
    unstraighten_(model)
    return Chained(names, "layers", without, without)
