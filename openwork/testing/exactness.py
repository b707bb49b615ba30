"""Exact counts and exact zeros: what a method did to a model is what its plan said."""

from __future__ import annotations

from torch import nn

from openwork.allocation import allocation
from openwork.method import Method
from openwork.patterns import Unstructured, pattern
from openwork.plan import plan
from openwork.scores import Batch
from openwork.sparsifier import Training
from openwork.testing.registry import require
from openwork.testing.trial import Outcome, Trial


def require_exact(
    trial: Trial, method: Method, model: nn.Module, where: str, data: list[Batch] | None = None
) -> Outcome:
    """Every mask has the planned count, and the masks together the count that was planned before anything
    was known.
    """
    expected = plan(model, method).kept
    outcome = trial.work(method, model, data)
    total = sum(int(mask.sum()) for mask in outcome.masks.values())
    if isinstance(pattern(method.pattern), Unstructured):
        require(total == expected, f"{total} are kept in all {where}, planned were {expected}")
    moves = isinstance(method, Training) and (
        method.redistributes or allocation(method.allocation).needs_scores
    )
    if not moves:
        for row in outcome.plan.sparse:
            kept = int(outcome.masks[row.name].sum())
            if method.whole_units:
                kept += (row.kept - kept) % max(1, int(outcome.masks[row.name].flatten(1).any(1).sum()))
            require(kept == row.kept, f"{row.name} keeps {kept} {where}, planned were {row.kept}")
    require_zeros(outcome, where)
    if not method.reads_zeros:
        for row in outcome.plan.sparse:
            require(
                row.pattern.allows(outcome.masks[row.name]),
                f"the mask of {row.name} is not {row.pattern} {where}",
            )
    return outcome


def require_zeros(outcome: Outcome, where: str) -> None:
    """Every weight outside the masks is zero."""
    for row in outcome.plan.sparse:
        weight = row.weight.oriented(row.weight.parameter.detach())
        left = int((weight[~outcome.masks[row.name]] != 0).sum())
        require(left == 0, f"{left} pruned weights of {row.name} are not zero {where}")
