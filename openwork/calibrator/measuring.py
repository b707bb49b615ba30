"""Statistics of what the layers of a block read, and what an allocation makes of them for every layer of a dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from openwork.blocks import Stack
from openwork.calibrator.batches import Batches
from openwork.calibrator.collection import Collection, Parted, Wanted
from openwork.calibrator.contract import Stage
from openwork.calibrator.planning import planned
from openwork.calibrator.stream import Stream
from openwork.layer_allocation import LayerAllocation, Seen
from openwork.matrices import Matrix, matrices
from openwork.progress import phase


def collected(
    block: nn.Module,
    layers: Sequence[Matrix],
    stream: Stream,
    batches: Batches,
    wanted: Wanted,
    *,
    keep: bool,
) -> tuple[Collection, list[Tensor]]:
    """Run a block as it is on all batches; returns the statistics of its layers and, to ``keep``, its outputs."""
    apart: frozenset[str] = frozenset()
    while True:
        collection, outputs = Collection(layers, wanted, apart), []
        try:
            for b in range(len(stream)):
                call = stream.call(b)
                output = collection.run(b, batches.tokens(b), partial(call.run, block))
                if keep:
                    outputs.append(output)
            return collection, outputs
        except Parted as found:
            apart |= found.names


def measured(
    model: nn.Module,
    stage: Stage,
    rule: LayerAllocation,
    rows_of_blocks: Sequence[Stack],
    dense: Mapping[str, str],
    batches: Batches,
    offload: Path | None,
) -> dict[str, Tensor]:
    """What an allocation makes of each parameter, from one pass through the dense model.

    Args:
        model: dense, at rest.
        stage: whose allocation it is.
        rule: the allocation.
        rows_of_blocks: where the blocks are.
        dense: weights that no stage works on (:func:`openwork.calibrator.planning.left_dense`).
        batches: the calibration data.
        offload: a folder for activations, or None.
    """
    rows = planned(model, replace(stage, allocation="uniform"), dense).sparse
    layers = [m for row in rows if not row.fixed for m in matrices(row.weight)]
    found: dict[str, list[Tensor]] = {}
    wanted = Wanted(samples=rule.samples)
    with phase("measuring layers", sum(len(stack.blocks) for stack in rows_of_blocks)) as progress:
        for stack in rows_of_blocks:
            with closing(Stream(model, list(stack.blocks.values()), batches, offload)) as stream:
                for block in stack.blocks.values():
                    own = inside(block, layers)
                    statistics, _ = collected(block, own, stream, batches, wanted, keep=False)
                    seen = [Seen(m.matrix(m.weight.parameter.detach()), statistics[m]) for m in own]
                    for m, number in zip(own, rule.measure(seen) if seen else [], strict=True):
                        found.setdefault(m.weight.name, []).append(torch.as_tensor(number))
                    stream.advance()
                    progress.advance()
    return {name: torch.stack(numbers).mean(0) for name, numbers in found.items()}


def inside(block: nn.Module, layers: Sequence[Matrix]) -> list[Matrix]:
    """The layers whose parameters are the block's."""
    parameters = {id(p) for p in block.parameters()}
    return [m for m in layers if id(m.weight.parameter) in parameters]
