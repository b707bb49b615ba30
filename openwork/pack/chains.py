"""Chains of packed layers: kept where the whole model is faster with them than without."""

from __future__ import annotations

from typing import Any

from torch import nn

from openwork.layouts.chain import Chain, chain_, unchain_
from openwork.pack.choice import MARGIN
from openwork.pack.decisions import Chained
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
    chain_(model)
    chains = {name: module for name, module in model.named_modules() if type(module) is Chain}
    if not chains:
        return None

    def layers() -> object:
        for chain in chains.values():
            Chain.release(chain)
        return run(model, example_inputs)

    def chained() -> object:
        for chain in chains.values():
            Chain.adopt(chain)
        return run(model, example_inputs)

    times = latencies({"layers": layers, "chained": chained}, seconds=seconds, rounds=9)
    with_chains, without = times["chained"].median * 1e3, times["layers"].median * 1e3
    if with_chains * MARGIN < without:
        chain_(model)
        return Chained(tuple(chains), "chained", without, with_chains)
    unchain_(model)
    return Chained(tuple(chains), "layers", without, without)
