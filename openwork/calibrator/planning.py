"""What a recipe will do to which layers: one plan a stage, over the weights whose inputs can be collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from openwork.allocation import allocation, exact_counts
from openwork.blocks import Stack
from openwork.layer_allocation import LayerAllocation
from openwork.matrices import Matrix, unseen
from openwork.method import Method, N
from openwork.plan import Plan, Row, plan
from openwork.weights import prunable


def left_dense(model: nn.Module, rows_of_blocks: Sequence[Stack]) -> dict[str, str]:
    """Weights that no stage works on, and why: those outside the blocks, and those whose inputs cannot be watched.

    Raises:
        ValueError: a layer holds only its kept connections already, or NaN.
    """
    inside = {
        id(p) for stack in rows_of_blocks for block in stack.blocks.values() for p in block.parameters()
    }
    dense: dict[str, str] = {}
    for weight in prunable(model):
        if weight.stored:
            raise ValueError(f"{weight.name} holds only its kept connections already: use to_dense_ first")
        if not bool(weight.parameter.isfinite().all()):
            raise ValueError(f"{weight.name} holds NaN or infinity: nothing was changed")
        if id(weight.parameter) not in inside:
            if not weight.reason:
                dense[weight.name] = "outside the blocks"
        elif reason := unseen(weight):
            dense[weight.name] = weight.reason or reason
    return dense


def restricted(stage: N, dense: Mapping[str, str]) -> N:
    """The stage, told to leave out what no stage works on."""
    return dataclasses.replace(stage, exclude=(*stage.exclude, *dense)) if dense else stage


def planned(
    model: nn.Module, stage: Method, dense: Mapping[str, str], measures: Mapping[str, Tensor] | None = None
) -> Plan:
    """The plan of one stage.

    Args:
        model: as it is.
        stage: of the recipe.
        dense: of :func:`left_dense`.
        measures: parameter -> what the stage's :class:`LayerAllocation` finds in it.
    """
    found = plan(model, restricted(stage, dense), measures)
    rows = (
        dataclasses.replace(row, why=f"dense: {dense[row.name]}")
        if row.name in dense and not row.sparse
        else row
        for row in found
    )
    return Plan(stage, tuple(rows))


def measuring(stage: Method) -> LayerAllocation | None:
    """The allocation of a stage, where that has to see the layers of the dense model first."""
    rule = allocation(stage.allocation)
    return rule if isinstance(rule, LayerAllocation) and not stage.reads_zeros else None


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
