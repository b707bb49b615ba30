"""The walk over the blocks of a model: statistics from what the compressed blocks before let through, then the recipe.

For each block: run it as it is on the recorded inputs and sum up what its layers read; let the stages work on one layer after
another; run the compressed block on the same inputs, whose outputs are the inputs of the next. Each layer is thus solved for the
inputs that it will see, and memory is that of one block.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.blocks import Matrix, matrices, stacks
from openwork.calibrator.batches import Batches
from openwork.calibrator.collection import Collection, Parted, Wanted
from openwork.calibrator.contract import (
    Block,
    BlockCalibrated,
    Calibrated,
    Layer,
    Solution,
    Stage,
    zeros_stay,
)
from openwork.calibrator.planning import beginning, plans, share
from openwork.calibrator.report import Calibration, Line
from openwork.calibrator.stream import Stream
from openwork.calibrator.undo import Undo, all_or_nothing, at_rest
from openwork.plan import Row, unwrapped
from openwork.progress import phase

SAMPLES = 2048
"""Tokens kept as they are for methods that need samples."""


def calibrate_(
    model: nn.Module,
    stages: Sequence[Stage],
    *,
    data: Iterable[Any] | None,
    masks: Mapping[str, Tensor] | None = None,
    blocks: str = "auto",
    offload: Path | None = None,
) -> Calibration:
    """Put a model through a recipe, in place. Use :func:`openwork.sparsify_`, which calls this.

    Args:
        model: any module; weights of layers inside its blocks change (and biases, where a stage corrects them).
        stages: what to do with each layer, in order.
        data: calibration batches, see :class:`openwork.calibrator.batches.Batches`.
        masks: parameter name -> boolean mask ``[out, in, *kernel]`` to begin with; the zeros of the model by default.
        blocks: where the blocks are, see :func:`openwork.blocks.stacks`.
        offload: keep recorded activations in files in this folder.

    Raises:
        ValueError: nothing to compress, no data, NaN in what a layer reads, or a stage that fills a zero. The model is as
            it was then, after any error.
    """
    model = unwrapped(model)
    batches = Batches(data)
    with all_or_nothing(model) as undo, at_rest(model):
        return _Walk(model, tuple(stages), batches, masks or {}, blocks, offload, undo).run()


class _Walk:
    def __init__(
        self,
        model: nn.Module,
        stages: tuple[Stage, ...],
        batches: Batches,
        masks: Mapping[str, Tensor],
        blocks: str,
        offload: Path | None,
        undo: Undo,
    ) -> None:
        self.model, self.stages, self.batches, self.undo = model, stages, batches, undo
        self.stacks, self.offload = stacks(model, blocks), offload
        self.plans = plans(model, stages, self.stacks)
        self.rows = [{row.name: row for row in p.sparse} for p in self.plans]
        every = {name: row for rows in reversed(self.rows) for name, row in rows.items()}
        self.masks = {name: beginning(row, masks) for name, row in every.items()}
        self.layers = {name: matrices(row.weight) for name, row in every.items()}
        exact = [isinstance(s, BlockCalibrated) and s.exact for s in stages]
        if exact != sorted(exact, reverse=True):
            raise ValueError(
                "stages that only move scale between layers come first in a recipe, and "
                f"{', '.join(s.name for s in stages)} has one after others"
            )
        self.lines: list[Line] = []
        self.parts: dict[str, dict[str, Any]] = {}
        needs = frozenset[str]().union(*(s.needs for s in stages if isinstance(s, Calibrated)))
        self.wanted = Wanted("gram" in needs, SAMPLES if "samples" in needs else 0)

    def run(self) -> Calibration:
        began = time.perf_counter()
        depth = sum(len(stack.blocks) for stack in self.stacks)
        with phase("calibrating", depth) as progress:
            for stack in self.stacks:
                stream = Stream(self.model, list(stack.blocks.values()), self.batches, self.offload)
                try:
                    for name, block in stack.blocks.items():
                        progress.describe(f"({progress.done + 1}/{depth}) calibrating {name}".rstrip())
                        self.undo.remember(block)
                        self._block(name, block, stream)
                        stream.advance()
                        progress.advance()
                finally:
                    stream.close()
        chosen = [p for p, stage in zip(self.plans, self.stages, strict=True) if not stage.reads_zeros]
        seconds = time.perf_counter() - began
        return Calibration((chosen or self.plans)[-1], self.masks, tuple(self.lines), self.parts, seconds)

    def _block(self, name: str, block: nn.Module, stream: Stream) -> None:
        inside = {id(p) for p in block.parameters()}
        layers = [m for many in self.layers.values() for m in many if id(m.weight.parameter) in inside]
        if not layers:
            return
        whole = any(isinstance(stage, BlockCalibrated) for stage in self.stages)
        statistics, targets = self._collect(block, layers, stream, keep=whole)
        states = {m.name: self._state(m, statistics) for m in layers}
        for stage, rows in zip(self.stages, self.rows, strict=True):
            if isinstance(stage, BlockCalibrated):
                self._solve_block(stage, rows, name, block, layers, stream, targets)
                if stage.exact:
                    statistics, targets = self._collect(block, layers, stream, keep=whole)
                    states = {m.name: self._state(m, statistics) for m in layers}
                else:
                    states = {m.name: self._reread(m, states[m.name]) for m in layers}
                continue
            for m in layers:
                if m.weight.name in rows:
                    states[m.name] = self._solve(stage, rows[m.weight.name], m, states[m.name])

    def _collect(
        self, block: nn.Module, layers: Sequence[Matrix], stream: Stream, *, keep: bool
    ) -> tuple[Collection, list[Tensor]]:
        apart: frozenset[str] = frozenset()
        while True:
            collection, targets = Collection(layers, self.wanted, apart), []
            try:
                for b in range(len(stream)):
                    call = stream.call(b)
                    output = collection.run(b, self.batches.tokens(b), partial(call.run, block))
                    if keep:
                        targets.append(output)
                return collection, targets
            except Parted as found:
                apart |= found.names

    def _state(self, m: Matrix, statistics: Collection) -> Layer:
        dense, mask, bias = _weight(m), self.masks[m.weight.name][m.rows].flatten(1), _bias(m)
        row = next(rows[m.weight.name] for rows in self.rows if m.weight.name in rows)
        return Layer(
            name=m.name,
            shape=m.shape,
            dense=dense,
            weight=dense.masked_fill(~mask, 0),
            mask=mask,
            dense_bias=bias,
            bias=bias,
            statistics=statistics[m],
            pattern=row.pattern,
            kept=int(mask.sum()),
        )

    def _reread(self, m: Matrix, layer: Layer) -> Layer:
        parts = self.parts.get(m.name, {})
        return dataclasses.replace(layer, weight=_weight(m), bias=_bias(m), parts=parts)

    def _solve(self, stage: Calibrated, row: Row, m: Matrix, layer: Layer) -> Layer:
        if not stage.reads_zeros:
            layer = dataclasses.replace(layer, pattern=row.pattern, kept=share(row, m))
        began = time.perf_counter()
        solution = stage.solve(layer)
        seconds = time.perf_counter() - began
        mask = layer.mask if solution.mask is None else solution.mask
        _check(stage, layer, solution, mask)
        self._write(m, solution, mask)
        effective = solution.weight if solution.effective is None else solution.effective
        error = layer.error(effective) if self.wanted.gram else None
        self.lines.append(Line(m.name, stage.name, mask.numel(), int(mask.sum()), error, seconds))
        return dataclasses.replace(
            layer,
            weight=solution.weight,
            mask=mask,
            kept=int(mask.sum()),
            bias=layer.bias if solution.bias is None else solution.bias,
            parts={**layer.parts, **solution.parts},
        )

    def _write(self, m: Matrix, solution: Solution, mask: Tensor) -> None:
        self.masks[m.weight.name][m.rows] = mask.reshape(m.shape)
        m.view(m.weight.parameter.detach()).copy_(solution.weight.reshape(m.shape))
        if solution.bias is not None:
            if m.bias is None:
                self.undo.add_bias(m.weight.module, solution.bias.to(m.weight.parameter.dtype))
            else:
                m.bias.detach()[m.rows].copy_(solution.bias)
        if solution.module is not None:
            name = m.weight.name.rpartition(".")[0]
            self.undo.replace(name, solution.module(m.weight.module))
        if solution.parts:
            self.parts.setdefault(m.name, {}).update(solution.parts)

    def _solve_block(
        self,
        stage: BlockCalibrated,
        rows: Mapping[str, Row],
        name: str,
        block: nn.Module,
        layers: Sequence[Matrix],
        stream: Stream,
        targets: Sequence[Tensor],
    ) -> None:
        names = {id(p): key for key, p in block.named_parameters()}
        masks = {names[id(m.weight.parameter)]: m.weight.restored(self.masks[m.weight.name]) for m in layers}
        began = time.perf_counter()
        with torch.enable_grad():
            stage.solve_block(
                Block(
                    name,
                    block,
                    masks,
                    [stream.call(b) for b in range(len(stream))],
                    targets,
                    [self.batches.tokens(b) for b in range(len(stream))],
                    {m.name: m for m in layers if m.weight.name in rows},
                    self.parts,
                )
            )
        seconds = time.perf_counter() - began
        parameters = dict(block.named_parameters())
        for key, mask in masks.items():
            if not zeros_stay(parameters[key].detach(), mask):
                raise ValueError(f"{stage.name} filled zeros of {name}.{key}: nothing was changed")
        size, kept = (
            sum(mask.numel() for mask in masks.values()),
            sum(int(mask.sum()) for mask in masks.values()),
        )
        self.lines.append(Line(name, stage.name, size, kept, None, seconds))


def _weight(m: Matrix) -> Tensor:
    p = m.weight.parameter.detach()
    return m.view(p).flatten(1).to(torch.float64 if p.dtype == torch.float64 else torch.float32, copy=True)


def _bias(m: Matrix) -> Tensor | None:
    if m.bias is None:
        return None
    p = m.bias.detach()
    return p[m.rows].to(torch.float64 if p.dtype == torch.float64 else torch.float32, copy=True)


def _check(stage: Calibrated, layer: Layer, solution: Solution, mask: Tensor) -> None:
    """Whatever a stage does, zeros are zero, counts are what the plan says, and numbers are numbers."""
    if solution.weight.shape != layer.dense.shape or mask.shape != layer.mask.shape:
        raise ValueError(
            f"{stage.name} returned a weight {list(solution.weight.shape)} and a mask {list(mask.shape)} for {layer.name}, "
            f"which is {list(layer.dense.shape)}"
        )
    if not bool(solution.weight.isfinite().all()):
        raise ValueError(f"{stage.name} made NaN or infinity of {layer.name}: nothing was changed")
    if not zeros_stay(solution.weight, mask):
        raise ValueError(f"{stage.name} filled zeros of {layer.name}: nothing was changed")
    wanted = layer.kept if stage.reads_zeros else layer.pattern.legal_kept(layer.shape, layer.kept)
    if (kept := int(mask.sum())) != wanted:
        raise ValueError(f"{stage.name} keeps {kept} weights of {layer.name}, and was to keep {wanted}")
