"""Train the same network by several methods, at equal cost: the same data, steps, batches and learning rate.

Methods that keep their number of connections train in stored form: parameters, gradients and optimizer state
have the size of what is kept from the first step to the last. Methods that start dense, or that need what is
pruned (its weights, its momentum), train under masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from openwork.compare.measure import TrainingState, training_state
from openwork.method import Method
from openwork.progress import phase
from openwork.pruner import Pruning, sparsify_
from openwork.scores import Batch
from openwork.sparsifier import Sparsifier, Training, attach
from openwork.storage import to_sparse_
from openwork.tasks.task import Task
from openwork.tasks.training import Metrics, Run, evaluate, fit
from openwork.train.keep_zeros import KeepZeros

SCORED = 8
"""Batches of training data that a method which prunes may look at."""


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common.

    Attributes:
        task: the data.
        model: seed -> a new dense model. It is made anew, with the same initial weights, for each contestant.
        steps: optimizer steps of each.
        batch_size: examples a step.
        learning_rate: of Adam at the start; it falls to zero along a cosine.
    """

    task: Task
    model: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Contestant:
    """A method under its name in the table.

    Attributes:
        name: in the table.
        method: how the network becomes sparse; None leaves it dense.
        pruned_at: the part of the steps after which a method that prunes does so; in the others what is left is
            trained on. 1 (default) prunes the trained dense network of the same seed.
        model: seed -> a model of another architecture than the one common to all, such as a smaller dense one.
    """

    name: str
    method: Method | None = None
    pruned_at: float = 1.0
    model: Callable[[int], nn.Module] | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros asked for."""
        return 0.0 if self.method is None else self.method.sparsity

    @property
    def prunes(self) -> bool:
        """Whether it takes a trained dense network instead of training its own."""
        return isinstance(self.method, Pruning) and self.pruned_at == 1.0

    def __str__(self) -> str:
        return self.name if self.method is None else f"{self.name} at {100 * self.sparsity:g} %"


@dataclass(frozen=True)
class Trained:
    """One network at the end of its training.

    Attributes:
        contestant: by which method.
        seed: of initial weights, of the order of the data, and of the method.
        model: dense, or in stored form.
        sparsity: achieved, over the weights the method covers.
        kept: connections in those weights.
        run: the training; of a pruned network, that of the dense one.
        validation: metrics of the network as it is now.
        test: the same on the test part.
        state: bytes held while training, at its last step.
    """

    contestant: Contestant
    seed: int
    model: nn.Module
    sparsity: float
    kept: int
    run: Run
    validation: Metrics
    test: Metrics
    state: TrainingState


def train(setting: Setting, contestant: Contestant, seed: int, dense: Trained | None = None) -> Trained:
    """Train one contestant, or prune ``dense`` by it.

    Args:
        setting: what is common to all.
        contestant: by which method.
        seed: of everything random.
        dense: the trained dense network of that seed; needed by methods that prune at the end, not changed.
    """
    method = None if contestant.method is None else replace(contestant.method, seed=seed)
    if isinstance(method, Pruning) and contestant.prunes:
        if dense is None:
            raise ValueError(
                f"{contestant} prunes a dense network: train the dense contestant of seed {seed} first"
            )
        return _pruned(setting, contestant, method, dense)
    model = (contestant.model or setting.model)(seed)
    total = connections(model)
    with phase(f"training {contestant}, seed {seed}", setting.steps) as bar:
        lesson = _Lesson(setting, seed, bar.advance)
        if isinstance(method, Pruning):
            run, state, sparsifier = lesson.pruned(model, method, contestant.pruned_at)
        else:
            assert method is None or isinstance(method, Training)
            run, state, sparsifier = lesson.sparse(model, method)
    kept, sparsity = (total, 0.0) if sparsifier is None else (sparsifier.kept, sparsifier.sparsity)
    if sparsifier is not None:
        _release(model, sparsifier)
    return _judged(setting, contestant, seed, model, sparsity, kept, run, state)


Taught: TypeAlias = tuple[Run, TrainingState, Sparsifier | None]
"""What was done, what it held at the end, and what still keeps the topology."""


class _Lesson:
    """The training that is common to all contestants."""

    def __init__(self, setting: Setting, seed: int, advance: Callable[[], None]) -> None:
        self.setting, self.seed, self.advance = setting, seed, advance

    def sparse(self, model: nn.Module, method: Training | None) -> Taught:
        """Dense, or by a method that works while the model trains."""
        if method is not None and can_be_stored(method):
            to_sparse_(model, method)
        optimizer, scheduler = self._optimizer(model, self.setting.steps)
        sparsifier = None if method is None else attach(model, optimizer, method)
        run = self._fit(model, optimizer, scheduler, self.setting.steps, self.seed)
        return run, training_state(model, optimizer, sparsifier), sparsifier

    def pruned(self, model: nn.Module, method: Pruning, pruned_at: float) -> Taught:
        """Dense for a while, pruned, and what is left trained for the rest.

        The learning rate begins anew, as of two trainings (rewinding: Renda et al., Comparing Rewinding and Fine-tuning in
        Neural Network Pruning, ICLR 2020): at the end of the first it is zero, and nothing could recover.
        """
        before = round(pruned_at * self.setting.steps)
        optimizer, scheduler = self._optimizer(model, before)
        first = self._fit(model, optimizer, scheduler, before, self.seed)
        to_sparse_(model, sparsify_(model, method, data=self._batches()).masks)
        optimizer, scheduler = self._optimizer(model, self.setting.steps - before)
        sparsifier = attach(model, optimizer, KeepZeros())
        # the order of data goes on in another epoch, not from the beginning
        second = self._fit(model, optimizer, scheduler, self.setting.steps - before, self.seed + (1 << 32))
        return _joined(first, second), training_state(model, optimizer, sparsifier), sparsifier

    def _optimizer(self, model: nn.Module, steps: int) -> tuple[Adam, CosineAnnealingLR]:
        optimizer = Adam(model.parameters(), lr=self.setting.learning_rate)
        return optimizer, CosineAnnealingLR(optimizer, max(1, steps))

    def _batches(self) -> list[Batch]:
        train, size = self.setting.task.train, self.setting.batch_size
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        parts = [train.subset(index) for index in order.split(size)[:SCORED]]
        return [(part.inputs, part.targets) for part in parts]

    def _fit(
        self, model: nn.Module, optimizer: Adam, scheduler: CosineAnnealingLR, steps: int, seed: int
    ) -> Run:
        return fit(
            model,
            self.setting.task,
            optimizer=optimizer,
            scheduler=scheduler,
            steps=steps,
            batch_size=self.setting.batch_size,
            seed=seed,
            on_step=lambda step, loss: self.advance(),
        )


def can_be_stored(method: Training) -> bool:
    """Whether a method works on the kept connections alone, from the first step to the last."""
    return method.stores and not (method.shrinks or method.latent or "momentum" in method.growth_needs)


def _joined(first: Run, second: Run) -> Run:
    return Run(
        steps=first.steps + second.steps,
        examples=first.examples + second.examples,
        seconds=first.seconds + second.seconds,
        losses=first.losses + second.losses,
        validation=second.validation,
    )


def connections(model: nn.Module) -> int:
    """Weights of two or more dimensions: those that a method could cover."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)


def _pruned(setting: Setting, contestant: Contestant, method: Pruning, dense: Trained) -> Trained:
    model = copy.deepcopy(dense.model)
    pruned = sparsify_(model, method, data=None)
    to_sparse_(model, pruned.masks)
    plan = pruned.plan
    return _judged(setting, contestant, dense.seed, model, plan.sparsity, plan.kept, dense.run, dense.state)


def _release(model: nn.Module, sparsifier: Sparsifier) -> None:
    """Let go of a network, and hold what it kept alone."""
    masks = {name: c.mask for name, c in sparsifier.connections.items() if not c.weight.stored}
    sparsifier.detach()
    if masks:
        to_sparse_(model, masks)


def _judged(
    setting: Setting,
    contestant: Contestant,
    seed: int,
    model: nn.Module,
    sparsity: float,
    kept: int,
    run: Run,
    state: TrainingState,
) -> Trained:
    validation = evaluate(model, setting.task.validation)
    test = evaluate(model, setting.task.test)
    return Trained(contestant, seed, model.eval(), sparsity, kept, run, validation, test, state)
