"""A trial: a method with its options, and how a method of each kind is carried out on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from openwork.calibrate.layer_drop import LayerDrop, drop_blocks_
from openwork.calibrator import BlockCalibrated, Calibrated, ModelCalibrated
from openwork.merger import Merging, merge_
from openwork.method import Method
from openwork.plan import Plan, plan
from openwork.pruner import Pruning, sparsify_
from openwork.restructuring import Restructuring, restructure_
from openwork.scores import Batch
from openwork.sparsifier import Sparsifier, Training, attach
from openwork.testing.networks import batches, network, residual, tuned

SHORT: Mapping[str, int] = {"steps": 9, "every": 3, "rounds": 3}
"""What is filled in for options of these names, where a method has them, so that a run takes a dozen steps.
"""


@dataclass(frozen=True)
class Trial:
    """A method class and the options it is checked with."""

    cls: type[Method]
    options: dict[str, Any]

    def method(self, **changes: Any) -> Method:
        """The method, with some options changed."""
        return self.cls(**{**self.options, **changes})

    @property
    def steps(self) -> int:
        """How many steps a run takes."""
        return int(self.options.get("steps") or SHORT["steps"])

    def network(self) -> nn.Module:
        """What the method is tried on: a network with blocks, if it is blocks that it works on."""
        return residual() if issubclass(self.cls, LayerDrop) else network()

    def work(self, method: Method, model: nn.Module, data: list[Batch] | None = None) -> Outcome:
        """Let the method do all it does to a model."""
        data = batches(self.steps, _dtype(model)) if data is None else data
        if isinstance(method, (Pruning, Calibrated, BlockCalibrated, ModelCalibrated)):
            pruned = sparsify_(model, method, data=data[:2])
            return Outcome(pruned.plan, pruned.masks)
        if isinstance(method, Merging):
            merge_(model, [tuned(model, seed) for seed in (1, 2)], method)
            return Outcome(plan(model, method), {})
        if isinstance(method, LayerDrop):
            drop_blocks_(model, method, data=data[:2])
            return Outcome(plan(model, method), {})
        if isinstance(method, Restructuring):
            planned = plan(model, method)
            restructure_(model, method)
            return Outcome(planned, {})
        sparsifier, optimizer = attached(method, model)
        for batch in data:
            step(model, optimizer, batch)
        return Outcome(sparsifier.plan, sparsifier.masks)


@dataclass(frozen=True)
class Outcome:
    """What a method said it would do to a model, and what it did; there are no masks of layers in another form, of merged
    models, or of blocks that are dropped."""

    plan: Plan
    masks: Mapping[str, Tensor]


def attached(method: Method, model: nn.Module) -> tuple[Sparsifier, Optimizer]:
    """A training method at work. What it does not thin has learning rate zero, so that only a mistake can
    change it.
    """
    assert isinstance(method, Training)
    thinned = {id(row.weight.parameter) for row in plan(model, method).sparse}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) in thinned]},
        {"params": [p for p in model.parameters() if id(p) not in thinned], "lr": 0.0, "weight_decay": 0.0},
    ]
    optimizer = AdamW([g for g in groups if g["params"]], lr=1e-2, weight_decay=0.1)
    return attach(model, optimizer, method), optimizer


def step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> float:
    """One ordinary training step; returns the loss."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss.item()


def plant_zeros(model: nn.Module, method: Method) -> None:
    """Give a method that keeps a model's zeros some to keep."""
    if method.reads_zeros and not method.restructures and not isinstance(method, (Merging, LayerDrop)):
        with torch.no_grad():
            for row in plan(model, method).sparse:
                row.weight.parameter.view(-1)[::3] = 0.0


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
