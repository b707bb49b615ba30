"""When every block is done: stages that work on the whole model, such as training a part of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from openwork.calibrator.contract import ModelCalibrated, zeros_stay
from openwork.calibrator.planning import beginning
from openwork.calibrator.report import Calibration, Line
from openwork.calibrator.undo import at_rest
from openwork.plan import Plan, plan
from openwork.scores import Loss
from openwork.weights import prunable


@contextmanager
def whole_or_nothing(model: nn.Module) -> Iterator[None]:
    """After an error inside this, the model is as it was: its modules, its parameters and their values."""
    modules = [(m, dict(m._modules), dict(m._parameters)) for m in model.modules()]
    held = [(t.detach(), t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    except BaseException:
        for module, children, parameters in modules:
            for own, before in ((module._modules, children), (module._parameters, parameters)):
                own.clear()
                own.update(before)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor, value in held:
                tensor.copy_(value)
        raise


@torch.no_grad()
def as_it_is(
    model: nn.Module, reader: ModelCalibrated, masks: Mapping[str, Tensor], chosen: Plan | None
) -> Calibration:
    """Where no stage works on layers or blocks: what is kept is what the masks say, or else the zeros of the model."""
    table = plan(model, reader)
    kept = {row.name: beginning(row, masks) for row in table.sparse if not masks or row.name in masks}
    for row in table.sparse:
        if row.name in kept:
            row.weight.oriented(row.weight.parameter.detach()).masked_fill_(~kept[row.name], 0)
    return Calibration(chosen or table, kept, ())


def work_on_model(
    stage: ModelCalibrated,
    model: nn.Module,
    done: Calibration,
    data: Iterable[object] | None,
    loss: Loss | None,
) -> Calibration:
    """Let a stage work on the model that the stages before it have left.

    Returns:
        What they have done, and what this one did.

    Raises:
        ValueError: there is no data, or the stage filled a zero.
    """
    began = time.perf_counter()
    batches = list(data or ())
    if not batches:
        raise ValueError(
            f"{stage.name} needs data=, an iterable of batches, and was given none: give at least one"
        )
    with at_rest(model):
        said = stage.solve_model(model, done.masks, batches, loss)
    weights = {w.name: w for w in prunable(model)}
    for name, mask in done.masks.items():
        if not zeros_stay(weights[name].oriented(weights[name].parameter.detach()), mask):
            raise ValueError(f"{stage.name} filled zeros of {name}: nothing was changed")
    size, kept = sum(m.numel() for m in done.masks.values()), sum(int(m.sum()) for m in done.masks.values())
    seconds = time.perf_counter() - began
    line = Line("all layers", stage.name, size, kept, None, seconds)
    parts = {**done.parts, stage.name: said} if said else done.parts
    return dataclasses.replace(done, lines=(*done.lines, line), parts=parts, seconds=done.seconds + seconds)
