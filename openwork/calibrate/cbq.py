"""CBQ: learn which way every weight is rounded, over windows of several blocks at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.calibrator.contract import Block
from openwork.calibrator.tuning import Tuned, keep_best
from openwork.calibrator.windows import Side, WindowCalibrated
from openwork.method import check_fraction, method
from openwork.quantization import Grid, Group, fit
from openwork.quantization.grouped import groups_of
from openwork.quantization.learned import LowRankRounding
from openwork.quantization.named import grid
from openwork.quantization.truncation import truncated

POWERS = (20.0, 2.0)
"""The regulariser's exponent falls from the first to the second: at first it leaves all but the decided alone."""


@method(
    paper="Ding et al., CBQ: Cross-Block Quantization for Large Language Models, ICLR 2025, arXiv 2312.07950",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class CBQ(WindowCalibrated):
    """Quantise so that a window of blocks computes what it did, with the way each weight is rounded learned in a few ranks.

    - Weights are ``s (floor(w / s) + h(V0 + A1 A2))``, with ``h`` a sigmoid between 0 and 1 that begins at the fraction of ``w /
      s`` (:class:`~openwork.quantization.learned.LowRankRounding`); ``A1``, ``A2`` and the scales are learned, and a regulariser
      ``1 - |2h - 1|^b``, ``b`` falling from 20 to 2, makes ``h`` decide. At the end ``h > 0.5`` rounds up.
    - The loss is the relative squared error of the window's output, and the Kullback-Leibler divergence of its softmax.
    - The best state over all batches remains: no worse than rounding to nearest.

    As a stage of a recipe it works on one block at a time. :func:`openwork.reconstruct_` slides ``window`` blocks, of which
    ``overlap`` are in the next one too; what was learned of those goes on being learned.

    Activations stay as they are; :class:`openwork.CoarseToFine` moves their outliers into the weights beforehand.

    Args:
        grid, group: of the weights; integers with a level at zero.
        rank: of ``A1 A2``; the authors' 5.
        truncate: cut the outliers of the weights first (:mod:`openwork.quantization.truncation`).
        epochs: over the calibration data; the authors' 3.
        learning_rate: of ``A1`` and ``A2``; Adam.
        scale_rate: of the scales, relative to their mean.
        decide: weight of the regulariser.
        divergence, temperature: weight of the divergence, and what outputs are divided by before the softmax.
    """

    grid: str | Grid = "int4"
    group: Group = "row"
    rank: int = 5
    truncate: bool = False
    epochs: int = 3
    learning_rate: float = 0.02
    scale_rate: float = 0.001
    decide: float = 0.01
    divergence: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        groups_of(1, self.group)
        grid(self.grid)
        check_fraction("decide", self.decide)
        if self.rank < 1 or self.temperature <= 0:
            raise ValueError(
                f"rank and temperature are positive; got rank={self.rank}, temperature={self.temperature}"
            )

    def begin(self, block: Block) -> Tuned:
        levels, learned = grid(self.grid), {}
        for name in block.layers:
            weight, mask = block.weight(name), block.mask(name)
            if self.truncate:
                weight = truncated(weight)
            learned[name] = LowRankRounding(
                weight,
                levels,
                fit(weight, levels, self.group),
                groups_of(weight.shape[1], self.group).to(weight.device),
                mask,
                self.rank,
                self.generator(name),
            )
        return Tuned(block.module, block.layers, learned)

    def tune(self, window: Sequence[Tuned], sides: Sequence[Side], purpose: str) -> tuple[float, float]:
        batches = len(sides[0].targets)
        learned = [rounding for tuned in window for rounding in tuned.learned.values()]
        groups = []
        for rounding in learned:
            assert isinstance(rounding, LowRankRounding)
            groups.append({"params": [rounding.left, rounding.right], "lr": self.learning_rate})
            unit = float(rounding.scale.detach().mean())
            groups.append({"params": [rounding.scale], "lr": self.scale_rate * unit})

        def distance(index: int) -> Tensor:
            return torch.stack([self.distance(*side(index)) for side in sides]).mean()

        def loss(index: int, progress: float) -> Tensor:
            power = POWERS[0] + (POWERS[1] - POWERS[0]) * progress
            open_ = torch.stack([r.undecided(power) for r in learned if isinstance(r, LowRankRounding)])
            return distance(index) + self.decide * open_.mean()

        def measure() -> float:
            with ExitStack() as hard:
                for tuned in window:
                    hard.enter_context(tuned.hardened())
                return sum(float(distance(index)) for index in range(batches))

        return keep_best(
            learned, torch.optim.Adam(groups), loss, measure, batches, self.epochs, self.generator(purpose)
        )

    def distance(self, output: Tensor, target: Tensor, tokens: Tensor | None) -> Tensor:
        """Relative squared error plus the weighted divergence, over the tokens that count."""
        if tokens is not None and tokens.shape == output.shape[:-1]:
            output, target = output[tokens], target[tokens]
        error = (output - target).square().sum() / target.square().sum().clamp(min=1e-30)
        if not self.divergence:
            return error
        true, found = ((t / self.temperature).log_softmax(-1) for t in (target, output))
        return error + self.divergence * (true.exp() * (true - found)).sum(-1).mean()
