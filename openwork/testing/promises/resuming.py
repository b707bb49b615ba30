"""The promise about resuming: interrupted and continued is the same as never interrupted."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from openwork.sparsifier import Sparsifier, Training, attach
from openwork.testing.bits import require_same, snapshot
from openwork.testing.networks import batches, network
from openwork.testing.registry import promise
from openwork.testing.trial import Trial, plant_zeros, step


@promise(about="connections")
def resuming_gives_the_same_bits(trial: Trial) -> None:
    """A training run that is saved, loaded into new objects and continued ends with the bits of a run that
    was never interrupted, wherever it was interrupted.
    """
    method = trial.method()
    if not isinstance(method, Training):
        return
    data = batches(trial.steps)
    straight = _start(method)
    for batch in data:
        step(straight.model, straight.optimizer, batch)
    for stop in sorted({1, trial.steps // 2, trial.steps - 1}):
        run = _start(method)
        for batch in data[:stop]:
            step(run.model, run.optimizer, batch)
        file = io.BytesIO()
        torch.save([run.model.state_dict(), run.optimizer.state_dict(), run.sparsifier.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model = network(seed=1)
        model.load_state_dict(saved[0])
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(saved[1])
        sparsifier = attach(model, optimizer, method, resume=saved[2])
        for batch in data[stop:]:
            step(model, optimizer, batch)
        when = f"when interrupted after step {stop}"
        require_same(snapshot(straight.model), snapshot(model), when)
        require_same(straight.sparsifier.masks, sparsifier.masks, f"of the masks {when}")
        require_same(
            _states(straight), _states(_Run(model, optimizer, sparsifier)), f"of the optimizer {when}"
        )


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    optimizer: Optimizer
    sparsifier: Sparsifier


def _start(method: Training) -> _Run:
    model = network()
    plant_zeros(model, method)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return _Run(model, optimizer, attach(model, optimizer, method))


def _states(run: _Run) -> dict[str, Tensor]:
    return {
        f"{i}.{key}": value
        for i, p in enumerate(run.model.parameters())
        for key, value in run.optimizer.state[p].items()
        if isinstance(value, Tensor)
    }
