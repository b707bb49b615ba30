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
from openwork.heads import Values, values
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
    """Reorder hidden channels, and values inside their heads, so that n:m keeps more of what matters; the model stays the same.

    1. The score of a connection is RIA's, ``(|w| / sum of its row + |w| / sum of its column) * ||x||^a``.
    2. Channels are ranked by their scores and dealt to the groups of m in turns of alternating direction.
    3. One place of every group after the other is assigned anew, such that the score that n:m keeps is largest; only what
       improves is accepted, so it is never less than without.

    The order is absorbed: rows of the layer that makes the channels move with the columns of those that read them, values
    exchange places and none is computed, so nothing is left to do when the model runs or is saved. That is possible where
    nothing else depends on the order: all over the hidden layer of a perceptron, gated or not, and for the values of an
    attention inside each of its heads (:mod:`openwork.heads`), where heads that share values share the order. What reads a norm
    or a residual connection keeps its order; the calibration's parts name such layers, and the retained scores of the others.
    (The paper pays for a gather there.)

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

        def whole(found: Channels | Values) -> bool:
            """All matrices that make and read the channels must be the stage's, for their masks move with them."""
            return {name for name, parameter, _ in found.parameters() if parameter.dim() > 1} <= worked_on

        def run() -> Any:
            return block.inputs[0].outputs(block.module)

        with torch.no_grad():
            free = unordered(block.module, run)
            known = [name for channels in free for name, _, _ in channels.parameters()]
            fitting = [c for c in free if c.channels % nm.of == 0 and whole(c)]
            attentions = [v for v in values(block.module, run, known) if _in_groups(v, nm.of) and whole(v)]
            both: list[Channels | Values] = [*fitting, *attentions]
            seen = observed(block, both, gram=False) if both else {}
            scores = {found.name: self._scores(found, seen[found.name]) for found in both}
            gains: dict[str, dict[str, Any]] = {}
            for channels in fitting:
                order = arranged(scores[channels.name], nm.keep, nm.of, exchanges=self.exchanges).cpu()
                gains[channels.name] = _gain(scores[channels.name], order, nm)
                channels.reorder_(order)
                _move_masks(block, channels, order, order)
            for attention in attentions:
                rows, columns, within = self._arranged(attention, scores[attention.name], nm)
                gains[attention.name] = {**_gain(scores[attention.name], columns, nm), "rows": rows}
                attention.reorder_(within)
                _move_masks(block, attention, rows, columns)
        moved = {r.name for found in both for r in found.readers}
        return {"permuted": gains, "in their order": sorted(name for name in worked_on if name not in moved)}

    def _scores(self, found: Channels | Values, seen: Statistics) -> Tensor:
        """Of the connections that read the channels, layers one below the other."""
        norms = seen.squares.sqrt() ** self.power
        return torch.cat([relative_importance(r.matrix()) * norms.to(r.weight.dtype) for r in found.readers])

    def _arranged(self, attention: Values, scores: Tensor, nm: NM) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Orders of the makers' rows, of the reader's columns, and inside each head."""
        within = [
            arranged(
                torch.cat([scores[:, columns] for columns in head.columns]),
                nm.keep,
                nm.of,
                exchanges=self.exchanges,
            ).cpu()
            for head in attention.heads
        ]
        return *attention.orders(within), within


def _in_groups(attention: Values, of: int) -> bool:
    """Whether the columns of every head are whole groups of so many neighbours."""
    columns = torch.cat([head.columns for head in attention.heads])
    if columns.shape[1] % of:
        return False
    groups = columns.view(-1, of)
    return bool((groups[:, 0] % of == 0).all() and (groups.diff(dim=1) == 1).all())


def _gain(scores: Tensor, order: Tensor, nm: NM) -> dict[str, Any]:
    before, after = retained(scores, nm.keep, nm.of), retained(scores[:, order], nm.keep, nm.of)
    return {"retained before": before, "retained after": after, "order": order}


def _move_masks(block: Block, found: Channels | Values, rows: Tensor, columns: Tensor) -> None:
    """Zeros that the model came with move along."""
    readers = {r.name for r in found.readers}
    for name, _, axis in found.parameters():
        if (mask := block.masks.get(name)) is not None:
            mask.copy_(mask.index_select(axis, (columns if name in readers else rows).to(mask.device)))
