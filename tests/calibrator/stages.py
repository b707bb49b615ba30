"""Stages that do little, to watch the engine at work, and the models it walks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from openwork.calibrator import BlockCalibrated, Calibrated, Solution
from openwork.tasks.gpt import gpt_small

SEEN: list = []
"""The layers that :class:`Watch` was given."""


@dataclass(frozen=True, kw_only=True)
class Watch(Calibrated):
    """Changes nothing, and notes what it sees."""

    name: ClassVar[str] = "watch"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    reads_zeros: ClassVar[bool] = True

    def solve(self, layer):
        SEEN.append(layer)
        return Solution(layer.weight)


@dataclass(frozen=True, kw_only=True)
class Faulty(Calibrated):
    """Goes wrong at one layer, in one of several ways."""

    name: ClassVar[str] = "faulty"
    reads_zeros: ClassVar[bool] = True

    at: str = ""
    how: str = "raise"

    def solve(self, layer):
        if layer.name != self.at:
            return Solution(layer.weight * 0.5)
        match self.how:
            case "raise":
                raise RuntimeError("on purpose")
            case "interrupt":
                raise KeyboardInterrupt
            case "fill":
                return Solution(layer.weight + 1, torch.zeros_like(layer.mask))
            case "nan":
                return Solution(layer.weight * torch.nan)
            case "shape":
                return Solution(layer.weight[:1])
            case _:
                return Solution(layer.weight * 0, torch.zeros_like(layer.mask))


@dataclass(frozen=True, kw_only=True)
class Tune(BlockCalibrated):
    """Moves every bias of a block a step down the gradient of the block's error, and notes the block."""

    name: ClassVar[str] = "tune"
    fill: bool = False

    def solve_block(self, block):
        SEEN.append(
            (
                block.name,
                [block.run(i).detach() for i in block],
                list(block.targets),
                block.tokens,
                block.masks,
            )
        )
        loss = sum(
            (block.run(i) - target).square().mean() for i, target in zip(block, block.targets, strict=True)
        )
        biases = {name: p for name, p in block.module.named_parameters() if name.endswith("bias")}
        gradients = torch.autograd.grad(loss, list(biases.values()))
        with torch.no_grad():
            for p, g in zip(biases.values(), gradients, strict=True):
                p -= 1e-3 * g
            if self.fill:
                for name in block.masks:
                    block.module.get_parameter(name).add_(1.0)


class Between(nn.Module):
    """Blocks with something computed between them."""

    def __init__(self, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(depth)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x / 2)
        return x


class Twice(Between):
    """One block is called twice."""

    def forward(self, x):
        return self.blocks[0](super().forward(x))


def gpt(depth=3, **options):
    return gpt_small(depth=depth, width=16, heads=2, context=16, vocabulary=11, **options)


def windows(batches=3, size=4, length=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(11, (size, length), generator=g) for _ in range(batches)]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
