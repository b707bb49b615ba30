"""The walk over the blocks of a model: statistics from what the compressed blocks before let through, then the recipe.

For each block: run it as it is on the recorded inputs and sum up what its layers read; let the stages work on one layer after
another; run the compressed block on the same inputs, whose outputs are the inputs of the next. Each layer is thus solved for the
inputs that it will see, and memory is that of one block.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from openwork.blocks import stacks
from openwork.calibrator.batches import Batches
from openwork.calibrator.checkpoint import Checkpoint
from openwork.calibrator.collection import Collection, Wanted
from openwork.calibrator.contract import BlockCalibrated, Calibrated, Stage
from openwork.calibrator.measuring import collected, inside, measured
from openwork.calibrator.planning import beginning, left_dense, measuring, planned
from openwork.calibrator.report import Calibration
from openwork.calibrator.stream import Stream
from openwork.calibrator.undo import Undo, all_or_nothing, at_rest
from openwork.calibrator.workshop import Workshop
from openwork.matrices import Matrix, matrices
from openwork.plan import Plan
from openwork.progress import phase
from openwork.weights import prunable, unwrapped

SAMPLES = 2048
"""Tokens kept as they are for methods that need samples."""

Targets = Literal["dense_on_sparse_inputs", "dense_stream"]


def calibrate_(
    model: nn.Module,
    stages: Sequence[Stage],
    *,
    data: Iterable[Any] | None,
    masks: Mapping[str, Tensor] | None = None,
    chosen: Plan | None = None,
    blocks: str = "auto",
    true_sequential: bool = False,
    targets: Targets = "dense_on_sparse_inputs",
    errors: bool = False,
    offload: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Calibration:
    """Put a model through a recipe, in place. Use :func:`openwork.sparsify_`, which calls this.

    Args:
        model: any module; weights of layers inside its blocks change (and biases, where a stage corrects them).
        stages: what to do with each layer, in order.
        data: calibration batches, see :class:`openwork.calibrator.batches.Batches`.
        masks: parameter name -> boolean mask ``[out, in, *kernel]`` to begin with; the zeros of the model by default.
        chosen: the plan that those masks came from, to be reported where no stage chooses.
        blocks: where the blocks are, see :func:`openwork.blocks.stacks`.
        true_sequential: collect statistics anew, inside a block, after each group of layers that read the same tensor: slower,
            and each layer is solved for what the layers just before it have become.
        targets: what stages that work on whole blocks reproduce: the outputs of the dense block on the inputs that the compressed
            blocks before it give (``"dense_on_sparse_inputs"``, default), or those of the dense model (``"dense_stream"``, which
            carries a second stream of activations along).
        errors: put the error of each layer in the table though no stage needs ``X^T X``, which it takes.
        offload: keep activations in files in this folder instead of in memory.
        checkpoint: folder for what is done, block by block. After a kill, the same call on the same dense model goes on from
            there and ends in the same bits. Delete it when all is well.

    Raises:
        ValueError: nothing to compress, no data, NaN in what a layer reads, a stage that fills a zero, a checkpoint of another
            run. The model is as it was then, after any error.
    """
    model, batches = unwrapped(model), Batches(data)
    if targets not in ("dense_on_sparse_inputs", "dense_stream"):
        raise ValueError(f"targets is 'dense_on_sparse_inputs' or 'dense_stream'; got {targets!r}")
    if targets == "dense_stream" and not any(isinstance(stage, BlockCalibrated) for stage in stages):
        raise ValueError(
            "targets='dense_stream' is for stages that work on whole blocks, and this recipe has none"
        )
    with all_or_nothing(model) as undo, at_rest(model):
        walk = _Walk(model, tuple(stages), batches, masks or {}, blocks, undo)
        walk.true_sequential, walk.dense_stream = true_sequential, targets == "dense_stream"
        walk.wanted = replace(walk.wanted, gram=walk.wanted.gram or errors)
        walk.offload = None if offload is None else Path(offload)
        if checkpoint is not None:
            settings = (blocks, true_sequential, targets, errors)
            walk.checkpoint = Checkpoint(Path(checkpoint), model, stages, batches, walk.given, settings)
        return walk.run(chosen)


class _Walk:
    true_sequential = False
    dense_stream = False
    offload: Path | None = None
    checkpoint: Checkpoint | None = None

    def __init__(
        self,
        model: nn.Module,
        stages: tuple[Stage, ...],
        batches: Batches,
        masks: Mapping[str, Tensor],
        blocks: str,
        undo: Undo,
    ) -> None:
        self.model, self.stages, self.batches, self.undo = model, stages, batches, undo
        exact = [isinstance(stage, BlockCalibrated) and stage.exact for stage in stages]
        if exact != sorted(exact, reverse=True):
            raise ValueError(
                "stages that only move scale between layers come first in a recipe, and "
                f"{', '.join(stage.name for stage in stages)} has one after others"
            )
        self.given = masks
        self.stacks = stacks(model, blocks)
        self.dense = left_dense(model, self.stacks)
        self.depth = sum(len(stack.blocks) for stack in self.stacks)
        needs = frozenset[str]().union(*(s.needs for s in stages if isinstance(s, Calibrated)))
        self.wanted = Wanted("gram" in needs, SAMPLES if "samples" in needs else 0)

    def run(self, chosen: Plan | None) -> Calibration:
        began = time.perf_counter()
        plans = [self._plan(stage) for stage in self.stages]
        rows = [{row.name: row for row in p.sparse} for p in plans]
        every = {name: row for some in reversed(rows) for name, row in some.items()}
        self.layers = [m for row in every.values() for m in matrices(row.weight)]
        masks = {name: beginning(row, self.given) for name, row in every.items()}
        self.beside = [w for w in prunable(self.model) if w.name in self.given and w.name not in every]
        masks |= {w.name: self.given[w.name].clone() for w in self.beside}
        shop = Workshop(self.stages, rows, masks, self.undo, measure_errors=self.wanted.gram)
        with phase("calibrating", self.depth) as progress:
            for stack in self.stacks:
                with ExitStack() as open_streams:
                    stream, *second = [
                        open_streams.enter_context(
                            closing(
                                Stream(self.model, list(stack.blocks.values()), self.batches, self.offload)
                            )
                        )
                        for _ in range(1 + self.dense_stream)
                    ]
                    if second and (stream.wiring is None or len(self.stacks) > 1):
                        raise ValueError(
                            f"the model computes something between the blocks of {stack.name}, or between several rows of "
                            "blocks, so no second stream can be carried along: use targets='dense_on_sparse_inputs'"
                        )
                    for name, block in stack.blocks.items():
                        progress.describe(f"({progress.done + 1}/{self.depth}) calibrating {name}".rstrip())
                        self._block(progress.done, name, block, stream, second[0] if second else None, shop)
                        stream.advance()
                        progress.advance()
        choosing = [p for p, stage in zip(plans, self.stages, strict=True) if not stage.reads_zeros]
        final = choosing[-1] if choosing else chosen or plans[0]
        return Calibration(final, shop.masks, tuple(shop.lines), shop.parts, time.perf_counter() - began)

    def _block(
        self, index: int, name: str, block: nn.Module, stream: Stream, second: Stream | None, shop: Workshop
    ) -> None:
        layers = inside(block, self.layers)
        targets = None if second is None else second.advance(keep=True)
        own = {id(p) for p in block.parameters()}
        beside = [w for w in self.beside if id(w.parameter) in own]
        if not layers and not beside:
            return
        self.undo.remember(block)
        if layers:
            self._work(index, name, block, layers, stream, targets, shop)
        for weight in beside:  # pruned by the masks to begin with, and left alone by every stage
            weight.oriented(weight.parameter.detach()).masked_fill_(~shop.masks[weight.name], 0)

    def _work(
        self,
        index: int,
        name: str,
        block: nn.Module,
        layers: Sequence[Matrix],
        stream: Stream,
        targets: Sequence[Tensor] | None,
        shop: Workshop,
    ) -> None:
        """Let the recipe work on the layers of a block."""
        if self.checkpoint is not None and self.checkpoint.restore(index, block, layers, shop):
            return
        before = len(shop.lines)
        whole = any(isinstance(stage, BlockCalibrated) for stage in self.stages)
        statistics, outputs = self._collect(block, layers, stream, keep=whole and targets is None)
        shop.open(layers, statistics)
        for some in _runs(self.stages):
            stage = self.stages[some[0]]
            if isinstance(stage, BlockCalibrated):
                shop.work_on_block(some[0], name, block, layers, stream, targets or outputs, self.batches)
                if stage.exact:
                    statistics, outputs = self._collect(block, layers, stream, keep=bool(outputs))
                    shop.open(layers, statistics)
                continue
            for number, group in enumerate(statistics.sequence() if self.true_sequential else [layers]):
                if self.true_sequential and (number or some[0]):
                    again, _ = self._collect(block, group, stream, keep=False)
                    shop.refresh(group, again)
                for i in some:
                    shop.work(i, group)
        shop.close()
        if self.checkpoint is not None:
            self.checkpoint.save(index, block, layers, shop, before)

    def _collect(
        self, block: nn.Module, layers: Sequence[Matrix], stream: Stream, *, keep: bool
    ) -> tuple[Collection, list[Tensor]]:
        return collected(block, layers, stream, self.batches, self.wanted, keep=keep)

    def _plan(self, stage: Stage) -> Plan:
        rule, found = measuring(stage), None
        if rule is not None:
            found = measured(self.model, stage, rule, self.stacks, self.dense, self.batches, self.offload)
        return planned(self.model, stage, self.dense, found)


def _runs(stages: Sequence[Stage]) -> list[list[int]]:
    """The stages in runs that work on layers one after another; one that works on whole blocks is a run of its own."""
    runs: list[list[int]] = []
    for i, stage in enumerate(stages):
        if runs and isinstance(stage, Calibrated) and isinstance(stages[i - 1], Calibrated):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs
