"""Train the same network by several methods, at equal cost: the same data, steps, batches and learning rate.

Methods that keep their number of connections train in stored form: parameters, gradients and optimizer state
have the size of what is kept from the first step to the last. Gradual pruning starts dense, and trains under
masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from openwork.compare.measure import TrainingState, training_state
from openwork.method import Method
from openwork.progress import phase
from openwork.pruner import Pruning, sparsify_
from openwork.sparsifier import Sparsifier, Training, attach
from openwork.storage import to_sparse_
from openwork.tasks.task import Task
from openwork.tasks.training import Metrics, Run, evaluate, fit


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
        method: how the network becomes sparse; None leaves it dense. A method that prunes does so, once, to
            the dense network of the same seed.
    """

    name: str
    method: Method | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros asked for."""
        return 0.0 if self.method is None else self.method.sparsity

    @property
    def prunes(self) -> bool:
        """Whether it takes a trained dense network instead of training its own."""
        return isinstance(self.method, Pruning)

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
        dense: the trained dense network of that seed; needed by methods that prune, not changed.
    """
    method = None if contestant.method is None else replace(contestant.method, seed=seed)
    if isinstance(method, Pruning):
        if dense is None:
            raise ValueError(
                f"{contestant} prunes a dense network: train the dense contestant of seed {seed} first"
            )
        return _pruned(setting, contestant, method, dense)
    model = setting.model(seed)
    is_stored = isinstance(method, Training) and not method.shrinks
    if isinstance(method, Training) and is_stored:
        to_sparse_(model, method)
    optimizer = Adam(model.parameters(), lr=setting.learning_rate)
    sparsifier = attach(model, optimizer, method) if isinstance(method, Training) else None
    with phase(f"training {contestant}, seed {seed}", setting.steps) as bar:
        run = fit(
            model,
            setting.task,
            optimizer=optimizer,
            scheduler=CosineAnnealingLR(optimizer, setting.steps),
            steps=setting.steps,
            batch_size=setting.batch_size,
            seed=seed,
            on_step=lambda step, loss: bar.advance(),
        )
    state = training_state(model, optimizer, sparsifier)
    total = connections(setting.model(seed))
    kept, sparsity = (total, 0.0) if sparsifier is None else (sparsifier.kept, sparsifier.sparsity)
    if sparsifier is not None:
        _release(model, sparsifier, is_stored)
    return _judged(setting, contestant, seed, model, sparsity, kept, run, state)


def connections(model: nn.Module) -> int:
    """Weights of two or more dimensions: those that a method could cover."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)


def _pruned(setting: Setting, contestant: Contestant, method: Pruning, dense: Trained) -> Trained:
    model = copy.deepcopy(dense.model)
    pruned = sparsify_(model, method, data=None)
    to_sparse_(model, pruned.masks)
    plan = pruned.plan
    return _judged(setting, contestant, dense.seed, model, plan.sparsity, plan.kept, dense.run, dense.state)


def _release(model: nn.Module, sparsifier: Sparsifier, is_stored: bool) -> None:
    masks = sparsifier.masks
    sparsifier.detach()
    if not is_stored:
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
