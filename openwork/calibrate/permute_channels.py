"""Change the places of channels before n:m is chosen, so that each group of neighbours has few that matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openwork.calibrate.ria import relative_importance
from openwork.calibrator.contract import Block, BlockCalibrated
from openwork.calibrator.migrating import observed
from openwork.grouping import arranged, retained
from openwork.method import method
from openwork.patterns import NM, Pattern, pattern
from openwork.reordering import Channels, unordered
from openwork.statistics import Statistics


@method(
    paper="Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, ICLR 2024",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class PermuteChannels(BlockCalibrated):
    """Reorder hidden channels so that n:m keeps more of what matters; the model computes the same as before.

    1. The score of a connection is RIA's, ``(|w| / sum of its row + |w| / sum of its column) * ||x||^a``.
    2. Channels are ranked by their scores and dealt to the groups of m in turns of alternating direction.
    3. One place of every group after the other is assigned anew, such that the score that n:m keeps is largest; only what
       improves is accepted, so it is never less than without.

    The order is absorbed: rows of the layer that makes the channels move with the columns of those that read them, values
    exchange places and none is computed, so nothing is left to do when the model runs or is saved. That is possible where
    nothing else depends on the order, which is the hidden layer of a perceptron, gated or not. What reads a norm, a residual
    connection or the heads of attention keeps its order; the calibration's parts name such layers, and the retained scores of
    the others. (The paper pays for a gather there.)

    The first stage of a recipe: ``[ow.PermuteChannels(), ow.RIA(pattern="2:4")]``, or any other method for n:m after it.

    Args:
        pattern: n:m, of the stage that follows.
        power: ``a``; the authors' 0.5.
        exchanges: rounds of assignments; 0 only deals the channels out, which takes no time.
    """

    exact = True

    pattern: str | Pattern = "2:4"
    power: float = 0.5
    exchanges: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(pattern(self.pattern), NM):
            raise ValueError(
                f"the order of channels matters for n:m, such as '2:4'; got {pattern(self.pattern)}"
            )
        if self.exchanges < 0:
            raise ValueError(f"exchanges is at least 0; got {self.exchanges}")

    def solve_block(self, block: Block) -> Mapping[str, Any]:
        nm = pattern(self.pattern)
        assert isinstance(nm, NM)
        worked_on = {m.weight.name.removeprefix(f"{block.name}.") for m in block.layers.values()}
        with torch.no_grad():
            free = unordered(block.module, lambda: block.inputs[0].outputs(block.module))
            fitting = [c for c in free if c.channels % nm.of == 0 and self._weights(c) <= worked_on]
            seen = observed(block, fitting, gram=False) if fitting else {}
            gains: dict[str, dict[str, Any]] = {}
            for channels in fitting:
                order, before, after = self._arranged(channels, seen[channels.name], nm)
                gains[channels.name] = {"retained before": before, "retained after": after, "order": order}
                self._reorder(block, channels, order)
        moved = {r.name for c in fitting for r in c.readers}
        return {"permuted": gains, "in their order": sorted(name for name in worked_on if name not in moved)}

    @staticmethod
    def _weights(channels: Channels) -> set[str]:
        """The matrices that make and read the channels; all must be the stage's, for their masks move with them."""
        return {name for name, parameter, _ in channels.parameters() if parameter.dim() > 1}

    def _arranged(self, channels: Channels, seen: Statistics, nm: NM) -> tuple[Tensor, float, float]:
        norms = seen.squares.sqrt() ** self.power
        scores = torch.cat(
            [relative_importance(r.matrix()) * norms.to(r.weight.dtype) for r in channels.readers]
        )
        order = arranged(scores, nm.keep, nm.of, exchanges=self.exchanges)
        return order.cpu(), retained(scores, nm.keep, nm.of), retained(scores[:, order], nm.keep, nm.of)

    def _reorder(self, block: Block, channels: Channels, order: Tensor) -> None:
        channels.reorder_(order)
        for name, _, axis in channels.parameters():
            if (mask := block.masks.get(name)) is not None:  # zeros that the model came with move along
                mask.copy_(mask.index_select(axis, order.to(mask.device)))
