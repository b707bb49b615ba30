"""The layers of one block at work: what each stage is given, what it gives back, checked and written to the model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openwork.calibrator.batches import Batches
from openwork.calibrator.collection import Collection
from openwork.calibrator.contract import Block, BlockCalibrated, Calibrated, Stage, zeros_stay
from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.planning import share
from openwork.calibrator.report import Line
from openwork.calibrator.stream import Stream
from openwork.calibrator.undo import Undo
from openwork.matrices import Matrix
from openwork.plan import Row


class Workshop:
    """Masks, table and parts of a model as the walk goes on, and the layers of the block it is at.

    Args:
        stages: the recipe.
        rows: for each stage, parameter -> its row in the stage's plan.
        masks: parameter -> the mask to begin with.
        undo: told of every module that is changed in kind.
        measure_errors: put the error of each layer in the table, for which ``X^T X`` is collected.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        rows: Sequence[Mapping[str, Row]],
        masks: dict[str, Tensor],
        undo: Undo,
        *,
        measure_errors: bool,
    ) -> None:
        self.masks = masks
        self.lines: list[Line] = []
        self.parts: dict[str, dict[str, Any]] = {}
        self.replaced: dict[str, nn.Module] = {}
        self._stages, self._rows, self._undo, self._errors = stages, rows, undo, measure_errors
        self._layers: dict[str, Layer] = {}

    def open(self, layers: Sequence[Matrix], collected: Collection) -> None:
        """Begin a block with its dense layers and the statistics of their inputs."""
        self._layers = {m.name: self._dense(m, collected) for m in layers}

    def refresh(self, layers: Sequence[Matrix], collected: Collection) -> None:
        """Give layers new statistics."""
        for m in layers:
            self._layers[m.name] = dataclasses.replace(self._layers[m.name], statistics=collected[m])

    def close(self) -> None:
        """Forget the layers of the block."""
        self._layers = {}

    def add_bias(self, m: Matrix, bias: Tensor) -> None:
        """Give a bias to a layer that has none."""
        self._undo.add_bias(m, bias)

    def replace(self, m: Matrix, module: nn.Module) -> None:
        """Put another module in the place of a layer's."""
        self._undo.replace(m.weight.name.rpartition(".")[0], module)
        self.replaced[m.name] = module

    def work(self, index: int, layers: Sequence[Matrix]) -> None:
        """Let stage ``index`` of the recipe work on some layers."""
        stage = self._stages[index]
        assert isinstance(stage, Calibrated)
        for m in layers:
            if (row := self._rows[index].get(m.weight.name)) is not None:
                self._layers[m.name] = self._worked(stage, row, m, self._layers[m.name])

    def work_on_block(
        self,
        index: int,
        name: str,
        block: nn.Module,
        layers: Sequence[Matrix],
        stream: Stream,
        targets: Sequence[Tensor],
        batches: Batches,
    ) -> None:
        """Let stage ``index`` of the recipe work on the whole block.

        Raises:
            ValueError: it filled a zero, or made NaN.
        """
        stage, began = self._stages[index], time.perf_counter()
        assert isinstance(stage, BlockCalibrated)
        names = {id(p): key for key, p in block.named_parameters()}
        weights = {names[id(m.weight.parameter)]: m.weight for m in layers}
        masks = {key: w.restored(self.masks[w.name]) for key, w in weights.items()}
        calls, tokens = (
            [stream.call(b) for b in range(len(stream))],
            [batches.tokens(b) for b in range(len(stream))],
        )
        for key, w in weights.items():  # what the masks to begin with prune is pruned before the stage works
            w.parameter.detach().masked_fill_(~masks[key], 0)
        with torch.enable_grad():
            inside = {m.name: m for m in layers if m.weight.name in self._rows[index]}
            said = stage.solve_block(Block(name, block, masks, calls, targets, tokens, inside, self.parts))
        if said:
            self.parts.setdefault(name, {}).update(said)
        for key, w in weights.items():
            if not bool(w.parameter.isfinite().all()):
                raise ValueError(f"{stage.name} made NaN or infinity of {w.name}: nothing was changed")
            if not zeros_stay(w.parameter.detach(), masks[key]):
                raise ValueError(f"{stage.name} filled zeros of {w.name}: nothing was changed")
        size, kept = sum(m.numel() for m in masks.values()), sum(int(m.sum()) for m in masks.values())
        self.lines.append(Line(name, stage.name, size, kept, None, time.perf_counter() - began))
        for m in layers:
            self._layers[m.name] = dataclasses.replace(
                self._layers[m.name],
                weight=m.matrix(m.weight.parameter.detach()),
                bias=_bias(m),
                parts=self.parts.get(m.name, {}),
            )

    def _dense(self, m: Matrix, collected: Collection) -> Layer:
        dense, mask, bias = (
            m.matrix(m.weight.parameter.detach()),
            self.masks[m.weight.name][m.rows].flatten(1),
            _bias(m),
        )
        return Layer(
            name=m.name,
            shape=m.shape,
            dense=dense,
            weight=dense.masked_fill(~mask, 0),
            mask=mask,
            dense_bias=bias,
            bias=bias,
            statistics=collected[m],
            pattern=next(rows[m.weight.name].pattern for rows in self._rows if m.weight.name in rows),
            kept=int(mask.sum()),
        )

    def _worked(self, stage: Calibrated, row: Row, m: Matrix, layer: Layer) -> Layer:
        began = time.perf_counter()
        if not stage.reads_zeros:
            layer = dataclasses.replace(layer, pattern=row.pattern, kept=share(row, m))
        solution = stage.solve(layer)
        mask = layer.mask if solution.mask is None else solution.mask
        _check(stage, layer, solution, mask)
        seconds = time.perf_counter() - began
        self._write(m, solution, mask)
        effective = solution.weight if solution.effective is None else solution.effective
        bias = layer.bias if solution.bias is None else solution.bias
        error = layer.error(effective, bias) if self._errors else None
        kept = int(mask.sum())
        self.lines.append(Line(m.name, stage.name, mask.numel(), kept, error, seconds))
        parts = {**layer.parts, **solution.parts}
        return dataclasses.replace(
            layer, weight=solution.weight, mask=mask, kept=kept, bias=bias, parts=parts
        )

    def _write(self, m: Matrix, solution: Solution, mask: Tensor) -> None:
        self.masks[m.weight.name][m.rows] = mask.reshape(m.shape)
        m.view(m.weight.parameter.detach()).copy_(solution.weight.reshape(m.shape))
        if solution.bias is not None and m.bias is not None:
            m.bias.detach()[m.rows].copy_(solution.bias)
        elif solution.bias is not None:
            self.add_bias(m, solution.bias)
        if solution.module is not None:
            self.replace(m, solution.module(m.weight.module))
        if solution.parts:
            self.parts.setdefault(m.name, {}).update(solution.parts)


def _bias(m: Matrix) -> Tensor | None:
    if m.bias is None:
        return None
    bias = m.bias.detach()[m.rows]
    return bias.to(torch.float64 if bias.dtype == torch.float64 else torch.float32, copy=True)


def _check(stage: Calibrated, layer: Layer, solution: Solution, mask: Tensor) -> None:
    """Whatever a stage does, zeros are zero, counts are what the plan says, and numbers are numbers."""
    if solution.weight.shape != layer.dense.shape or mask.shape != layer.mask.shape:
        raise ValueError(
            f"{stage.name} returned a weight {list(solution.weight.shape)} and a mask {list(mask.shape)} for {layer.name}, "
            f"which is {list(layer.dense.shape)}: nothing was changed"
        )
    if not bool(solution.weight.isfinite().all()):
        raise ValueError(f"{stage.name} made NaN or infinity of {layer.name}: nothing was changed")
    if not zeros_stay(solution.weight, mask):
        raise ValueError(f"{stage.name} filled zeros of {layer.name}: nothing was changed")
    wanted = layer.kept if stage.reads_zeros else layer.pattern.legal_kept(layer.shape, layer.kept)
    if (kept := int(mask.sum())) != wanted:
        raise ValueError(
            f"{stage.name} keeps {kept} weights of {layer.name} and was to keep {wanted}: nothing was changed"
        )
