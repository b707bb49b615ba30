"""Promises about bad input: what cannot be done is refused, and nothing is left half done."""

from __future__ import annotations

import warnings

import torch

from openwork.sparsifier import SparsifierWarning, Training
from openwork.testing.bits import require_same, snapshot
from openwork.testing.exactness import require_exact, require_zeros
from openwork.testing.networks import batches, network
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial, attached, plant_zeros, step


@promise
def refusal_changes_nothing(trial: Trial) -> None:
    """What cannot be done raises a ValueError before the model has changed."""
    model = trial.network()
    before = snapshot(model)
    for impossible in ({"exclude": ("no such layer",)}, {"kept": 10**6}):
        try:
            trial.work(trial.method(**impossible), model)
        except ValueError:
            require_same(before, snapshot(model), f"after {impossible} was refused")
        else:
            require(trial.cls.reads_zeros and "kept" in impossible, f"{impossible} was accepted")


@promise(about="connections")
def bad_gradients_do_no_harm(trial: Trial) -> None:
    """With inputs of zero, which leave gradients of zero, the counts are exact. With NaN, pruned weights are
    still exactly zero, or a ValueError leaves the model as it was; an update of the topology that meets NaN
    is made nowhere.
    """
    for value in (0.0, torch.nan):
        model, method = network(), trial.method()
        plant_zeros(model, method)
        before = snapshot(model)
        data = [(torch.full_like(x, value), y) for x, y in batches(trial.steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsifierWarning)
            if value == 0.0:
                require_exact(trial, method, model, "with inputs of zero", data)
                continue
            try:
                require_zeros(trial.work(method, model, data), "with inputs of NaN")
            except ValueError:
                require_same(before, snapshot(model), "after scores of NaN were refused")
    if isinstance(method, Training):
        _require_whole_updates(trial, method)


def _require_whole_updates(trial: Trial, method: Training) -> None:
    """An update that is skipped changes no parameter, though only the last one has gradients of NaN."""
    model = network()
    plant_zeros(model, method)
    sparsifier, optimizer = attached(method, model)
    last = list(sparsifier.connections.values())[-1]
    last.weight.parameter.register_hook(lambda gradient: gradient.masked_fill(~last.mask, torch.nan))
    for number, batch in enumerate(batches(trial.steps), 1):
        masks, skipped = sparsifier.masks, sparsifier.skipped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsifierWarning)
            step(model, optimizer, batch)
        if sparsifier.skipped > skipped:
            require_same(
                masks, sparsifier.masks, f"of the masks after the update of step {number} was skipped"
            )
