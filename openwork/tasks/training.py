"""The plain training loop: the same seed gives the same weights, and the clock counts training only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from openwork.tasks.task import Split, Task


@dataclass(frozen=True)
class Metrics:
    """How well a model does on a split.

    Attributes:
        loss: mean cross entropy in nats, per target.
        accuracy: fraction of targets whose logit is the largest.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """What a training run did.

    Attributes:
        steps: optimizer steps taken.
        examples: training examples seen, repetitions included.
        seconds: wall-clock time of the steps, without evaluation and without ``on_step``.
        losses: training loss of every step, on the batch it was taken for.
        validation: on ``task.validation`` after the last step.
    """

    steps: int
    examples: int
    seconds: float
    losses: tuple[float, ...]
    validation: Metrics


def fit(
    model: nn.Module,
    task: Task,
    *,
    optimizer: Optimizer,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    scheduler: LRScheduler | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Run:
    """Train ``model`` in place on ``task.train`` with the cross entropy.

    Every epoch goes through the data once, in a new order drawn from ``seed``; the last, smaller batch of an
    epoch is used too. Training goes on until an epoch or step count is reached, never until a score is: the
    cost of two methods is equal when their steps are.

    Args:
        model: from ``task.train.inputs`` to logits ``[..., classes]``.
        task: the data.
        optimizer: of the model's parameters. Whatever is attached to it (a sparsifier) works along.
        epochs: passes through the data; give this or ``steps``.
        steps: optimizer steps.
        batch_size: examples a step.
        seed: of the order of the data and of ``augment``.
        scheduler: stepped once after each optimizer step.
        augment: ``(inputs, generator) -> inputs``, applied to every batch.
        on_step: called with the number of steps taken (from 1) and the loss of the last one.

    Raises:
        ValueError: not exactly one of ``epochs`` and ``steps``, or no examples.
        FloatingPointError: the loss is not finite; the step that would follow is not taken.
    """
    total = _steps(epochs, steps, len(task.train), batch_size)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    seconds = 0.0
    examples = 0
    batches = _batches(len(task.train), batch_size, generator)
    model.train()
    for step in range(1, total + 1):
        begin = time.perf_counter()
        batch = task.train.subset(next(batches))
        inputs = batch.inputs if augment is None else augment(batch.inputs, generator)
        loss = cross_entropy(model(inputs), batch.targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of step {step} is {losses[-1]}: try a smaller learning rate")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        examples += len(batch)
        seconds += time.perf_counter() - begin
        if on_step is not None:
            on_step(step, losses[-1])
    return Run(total, examples, seconds, tuple(losses), evaluate(model, task.validation))


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, batch_size: int = 1024) -> Metrics:
    """Loss and accuracy on a split, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for begin in range(0, len(split), batch_size):
        targets = split.targets[begin : begin + batch_size]
        logits = model(split.inputs[begin : begin + batch_size])
        loss += float(cross_entropy(logits, targets)) * targets.numel()
        correct += int((logits.argmax(-1) == targets).sum())
    model.train(was_training)
    return Metrics(loss / split.targets.numel(), correct / split.targets.numel())


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of ``logits [..., classes]`` with ``targets [...]``."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _batches(examples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.split(torch.randperm(examples, generator=generator), batch_size)


def _steps(epochs: int | None, steps: int | None, examples: int, batch_size: int) -> int:
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"say how long to train with exactly one of epochs= and steps=; got {epochs} and {steps}"
        )
    if examples < 1 or batch_size < 1:
        raise ValueError(f"cannot train on {examples} examples in batches of {batch_size}")
    if steps is not None:
        return steps
    assert epochs is not None
    return epochs * -(-examples // batch_size)
