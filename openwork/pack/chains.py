"""Chains of packed layers: kept where the whole model is faster with them than without."""

from __future__ import annotations

from typing import Any

from torch import nn

from openwork.layouts.chain import Chain, chain_, unchain_
from openwork.pack.choice import MARGIN
from openwork.scores import run
from openwork.timing import latencies


def chain_where_faster_(model: nn.Module, example_inputs: Any, seconds: float) -> bool:
    """Let the layers of ``model`` hand their activations on in tiles if that makes it faster by more than noise, in place
    (:class:`openwork.layouts.chain.Chain`).

    Args:
        model: packed.
        example_inputs: what it is called with.
        seconds: to spend on measuring, about.

    Returns:
        Whether it has chains now.
    """
    unchain_(model)
    chain_(model)
    chains = [module for module in model.modules() if type(module) is Chain]
    if not chains:
        return False

    def layers() -> object:
        for chain in chains:
            Chain.release(chain)
        return run(model, example_inputs)

    def chained() -> object:
        for chain in chains:
            Chain.adopt(chain)
        return run(model, example_inputs)

    times = latencies({"layers": layers, "chained": chained}, seconds=seconds, rounds=9)
    faster = times["chained"].median * MARGIN < times["layers"].median
    if faster:
        chain_(model)
    else:
        unchain_(model)
    return faster
