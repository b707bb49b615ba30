"""What a recipe will do to which layers: one plan a stage, over the weights whose inputs can be collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from openwork.allocation import exact_counts
from openwork.blocks import Matrix, Stack, unseen
from openwork.method import Method
from openwork.plan import Plan, Row, plan, prunable


def plans(model: nn.Module, stages: Sequence[Method], rows_of_blocks: Sequence[Stack]) -> list[Plan]:
    """A plan for each stage. Weights outside the blocks, and those whose inputs cannot be watched, stay dense.

    Raises:
        ValueError: a stage finds nothing to work on, or weights that hold only their kept connections, or that are not finite.
    """
    inside = {
        id(p) for stack in rows_of_blocks for block in stack.blocks.values() for p in block.parameters()
    }
    dense: dict[str, str] = {}
    for weight in prunable(model):
        if weight.stored:
            raise ValueError(f"{weight.name} holds only its kept connections already: use to_dense_ first")
        if weight.reason:
            continue
        if id(weight.parameter) not in inside:
            dense[weight.name] = "outside the blocks"
        elif reason := unseen(weight):
            dense[weight.name] = reason
    return [_plan(model, stage, dense) for stage in stages]


def _plan(model: nn.Module, stage: Method, dense: Mapping[str, str]) -> Plan:
    asked = dataclasses.replace(stage, exclude=(*stage.exclude, *dense))
    found = plan(model, asked)
    for row in found.sparse:
        if not bool(row.weight.parameter.isfinite().all()):
            raise ValueError(f"{row.name} holds NaN or infinity: nothing was changed")
    rows = (
        dataclasses.replace(row, why=f"dense: {dense[row.name]}")
        if row.name in dense and row.why == "excluded: by name"
        else row
        for row in found
    )
    return Plan(stage, tuple(rows))


def beginning(row: Row, masks: Mapping[str, Tensor]) -> Tensor:
    """The mask a weight starts with: the one given, else its zeros."""
    if row.name in masks:
        return masks[row.name].clone()
    return row.weight.oriented(row.weight.parameter.detach()) != 0


def share(row: Row, m: Matrix) -> int:
    """How many of a parameter's connections one of its matrices keeps: equally many each, in whole units of the pattern, and
    what does not divide evenly goes to the first ones.
    """
    if m.of == 1:
        return row.kept
    grid = row.pattern.grid(m.shape)
    unit = grid.rows * grid.atom
    units = row.kept // unit
    return exact_counts([units / m.of] * m.of, [grid.competitors] * m.of, units)[m.index] * unit
