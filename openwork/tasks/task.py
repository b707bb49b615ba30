"""A data set cut into three: train on one part, choose on another, report on the third."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["classification", "language"]


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        inputs: ``[examples, ...]``, float for images and tables, int64 tokens ``[examples, context]`` for
            text.
        targets: int64 class of every example ``[examples]``, or of every position ``[examples, context]``.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"a split of {len(self.inputs)} inputs has {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, index: Tensor) -> Split:
        """The examples at ``index`` (int64 or bool), in that order."""
        return Split(self.inputs[index], self.targets[index])


@dataclass(frozen=True)
class Task:
    """Real data with a question: inputs, targets, and three parts that never mix.

    Attributes:
        name: as in :func:`openwork.tasks.get`.
        kind: ``classification`` of whole inputs, or ``language``: the next token at every position.
        train: to fit weights.
        validation: cut from the official training data; to choose settings and methods.
        test: to report, and for nothing else.
        classes: what target 0, 1, ... stand for.
    """

    name: str
    kind: Kind
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]

    def __str__(self) -> str:
        sizes = f"{len(self.train)} / {len(self.validation)} / {len(self.test)}"
        shape = "x".join(map(str, self.train.inputs.shape[1:]))
        return f"{self.name}: {self.kind}, {sizes} examples of {shape}, {len(self.classes)} classes"


def cut(whole: Split, part: int, seed: int = 0) -> tuple[Split, Split]:
    """Cut ``part`` examples, chosen at random by ``seed``, from a split.

    Returns:
        The rest and the part; each keeps the order of ``whole``. The same on every machine.

    Raises:
        ValueError: nothing would be left.
    """
    if not 0 < part < len(whole):
        raise ValueError(
            f"cannot cut {part} examples from {len(whole)} and leave some: ask for 1 to {len(whole) - 1}"
        )
    taken = torch.zeros(len(whole), dtype=torch.bool)
    taken[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:part]] = True
    return whole.subset(~taken), whole.subset(taken)


def fewer(task: Task, examples: int, seed: int = 0) -> Task:
    """The task with ``examples`` to train on, chosen at random by ``seed``; validation and test stay whole.

    Raises:
        ValueError: it has not more than that.
    """
    return replace(task, train=cut(task.train, examples, seed)[1])


def standardized(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Shift and scale images of small integers to mean 0 and deviation 1 of each channel of ``train``.

    Args:
        train: ``[examples, channels, height, width]``, integers from 0 to 255; not changed.
        others: the same shape but for the number of examples; they get the numbers of ``train``.

    Returns:
        float32 tensors.
    """
    count = train.numel() // train.shape[1]
    total, squares = torch.zeros(2, train.shape[1], dtype=torch.int64)
    for some in torch.split(train, 1000):  # in integers, so that the order of summation cannot matter
        total += some.sum((0, 2, 3))
        squares += some.int().square().sum((0, 2, 3))
    mean = total / count
    scale = (squares / count - mean.square()).sqrt()
    shape = (1, -1, 1, 1)
    return tuple(x.float().sub_(mean.view(shape)).div_(scale.view(shape)) for x in (train, *others))
