"""How long a recipe will take, and how much memory, before it starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openwork.blocks import stacks
from openwork.calibrator.batches import Batches
from openwork.calibrator.collection import Collection, Wanted
from openwork.calibrator.contract import BlockCalibrated, Calibrated, Stage
from openwork.calibrator.planning import left_dense
from openwork.calibrator.stream import Stream
from openwork.calibrator.undo import at_rest
from openwork.matrices import Matrix, matrices
from openwork.reconstruction.hessian import inverse_factor
from openwork.weights import prunable, unwrapped


@dataclass(frozen=True)
class Estimate:
    """What a recipe will take. Print it.

    Attributes:
        blocks, layers, batches: how many there are.
        seconds: about how long calibration takes: one batch through the first block, its statistics, and one factorisation were
            measured, and multiplied. Iterative solvers, and stages that train whole blocks, come on top.
        nbytes: memory beside the model, at most: a copy of the dense weights to go back to, the statistics and weights of the
            largest block (as if no two layers shared an input), factorisations of its widest layer, and what flows between
            blocks.
    """

    blocks: int
    layers: int
    batches: int
    seconds: float
    nbytes: int

    def __str__(self) -> str:
        return (
            f"{self.layers} layers in {self.blocks} blocks, {self.batches} batches: about {self.seconds:.0f} s and "
            f"{self.nbytes / 2**20:.0f} MiB beside the model"
        )


def estimate(
    model: nn.Module, method: Stage | Sequence[Stage], *, data: Iterable[Any], blocks: str = "auto"
) -> Estimate:
    """What :func:`openwork.sparsify_` would take with these arguments. Nothing is changed.

    Args:
        model: as it would be compressed.
        method: the stage, or the stages of a recipe that calibrate.
        data: calibration batches; the first is run through the first block, three times.
        blocks: where the blocks are.
    """
    stages = list(method) if isinstance(method, Sequence) else [method]
    model, batches = unwrapped(model), Batches(data)
    gram = any("gram" in stage.needs for stage in stages if isinstance(stage, Calibrated))
    found = stacks(model, blocks)
    dense = left_dense(model, found)
    weights = [w for w in prunable(model) if not w.reason and w.name not in dense]
    every = [
        [m for w in weights if _holds(b, w.parameter) for m in matrices(w)]
        for s in found
        for b in s.blocks.values()
    ]
    with at_rest(model), torch.no_grad():
        one = Batches([batches[0]])
        with closing(Stream(model, list(found[0].blocks.values()), one)) as stream:
            block, call = next(iter(found[0].blocks.values())), stream.call(0)
            flowing = _flowing(call.leaves)
            forward = min(_seconds(partial(call.run, block)) for _ in range(2))  # the first one warms up
            collection = Collection(every[0], Wanted(gram))
            collecting = _seconds(partial(collection.run, 0, None, partial(call.run, block)))
    solving = _factorisations(every) if gram else 0.0
    streams = 2 + any(isinstance(stage, BlockCalibrated) for stage in stages)
    widths = [m.matrix_shape for layers in every for m in layers]
    return Estimate(
        blocks=len(every),
        layers=len(widths),
        batches=len(batches),
        seconds=len(every) * len(batches) * (forward + collecting) + solving,
        nbytes=sum(p.nbytes for layers in found for b in layers.blocks.values() for p in b.parameters())
        + max(
            (
                sum((4 * i * i if gram else 0) + 12 * o * i for o, i in map(_shape, layers))
                for layers in every
            ),
            default=0,
        )
        + (24 * max((i for _, i in widths), default=0) ** 2 if gram else 0)
        + streams * len(batches) * flowing,
    )


def _shape(m: Matrix) -> tuple[int, int]:
    return m.matrix_shape


def _holds(block: nn.Module, parameter: Tensor) -> bool:
    return any(p is parameter for p in block.parameters())


def _flowing(leaves: Iterable[Any]) -> int:
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _factorisations(every: Sequence[Sequence[Matrix]]) -> float:
    """One factorisation and one sweep for each layer, from the time that they take for 256 inputs."""
    size = 256
    gram = torch.eye(size) + 0.1
    unit = min(_seconds(partial(inverse_factor, gram)) for _ in range(3)) / size**3
    return sum(unit * inputs**2 * (inputs + out) for out, inputs in map(_shape, itertools.chain(*every)))
