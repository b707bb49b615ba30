"""Promises about the plan and its budget: what is counted is exact, whatever the sparsity, the ties and the shapes."""

from __future__ import annotations

from typing import Any

import torch

from openwork.patterns import Unstructured, pattern
from openwork.plan import plan, wanted_total
from openwork.testing.bits import require_same, snapshot
from openwork.testing.exactness import require_exact
from openwork.testing.networks import narrow, network
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial, plant_zeros


@promise
def planning_changes_nothing(trial: Trial) -> None:
    """A plan can be made any number of times, is always the same, and leaves the model as it was."""
    model = trial.network()
    before = snapshot(model)
    first, second = plan(model, trial.method()), plan(model, trial.method())
    require(str(first) == str(second), f"the second plan differs from the first:\n{first}\n{second}")
    require_same(before, snapshot(model), "after planning")


@promise(about="connections")
def budget_is_exact(trial: Trial) -> None:
    """Every parameter keeps exactly as many connections as the plan says, these are as many as were asked
    for in all, the masks fit the pattern, and every other weight is exactly zero.
    """
    size = plan(network(), trial.method(sparsity=0.5)).numel
    settings: list[dict[str, Any]] = [{"sparsity": s} for s in (0.0, 0.35, 0.8)] + [
        {"kept": k} for k in (size // 3, 23)
    ]
    for setting in settings:
        model, method = network(), trial.method(**setting)
        plant_zeros(model, method)
        planned = plan(model, method)
        if isinstance(pattern(method.pattern), Unstructured) and not method.reads_zeros:
            asked = wanted_total(method, planned.numel)
            require(
                planned.kept == asked, f"with {setting} the plan keeps {planned.kept}, asked for were {asked}"
            )
        require_exact(trial, method, model, f"with {setting}")


@promise(about="connections")
def ties_are_broken_exactly(trial: Trial) -> None:
    """The counts are exact when all weights are equal."""
    model, method = network(), trial.method()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.25)
    plant_zeros(model, method)
    require_exact(trial, method, model, "with all weights equal")


@promise(about="connections")
def one_row_is_enough(trial: Trial) -> None:
    """Matrices of one row or one column are no exception."""
    model, method = narrow(), trial.method(sparsity=0.5)
    plant_zeros(model, method)
    require_exact(trial, method, model, "in a network with one row and one column")
