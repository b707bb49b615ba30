"""CHT: SET that grows where the graph itself suggests a link, without looking at any gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.connections import Connections, Rewiring
from openwork.graphs import without_dead_ends
from openwork.grid import top_k
from openwork.growth import Growth, drawn
from openwork.initialization import Init
from openwork.method import Method, method
from openwork.patterns import Block, Gates, Groups, pattern
from openwork.plan import Plan
from openwork.schedules import value_at
from openwork.sparsifier import Sparsifier
from openwork.train.set import SET


@method(
    paper="Zhang et al., Epitopological Learning and Cannistraci-Hebb Network Shape Intelligence Brain-Inspired Theory for "
    "Ultra-Sparse Advantage in Deep Learning, ICLR 2024; Zhang et al., Brain Network Science Modelling of Sparse Neural "
    "Networks Enables Transformers and LLMs to Perform as Fully Connected (CHTs), 2025, arXiv 2501.19107",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class CHT(SET):
    """Cannistraci-Hebb training: connect units that many short paths inside one community connect already.

    At an update, in each parameter with ``n`` connections, seen as a graph between outputs and inputs::

        drop  the floor(a n) smallest |w|; or, soft, draw the survivors with probability ~ |w|^(1 + 2t/T)
        drop  links to units from which nothing leads on, and from units that nothing reaches      (with chain)
        grow  as many by CH3-L3, the best or drawn with probability ~ score, starting from zero

    No gradient is needed, dense or other, so it works alike masked and stored; an update takes memory of ``out^2 + in^2`` for a
    moment. The soft rules are those of CHTs: the hard ones are prone to remove and regrow the same links for ever.
    Convolutions are graphs between outputs and taps of inputs; the authors treat linear layers only.

    Args:
        drop: 0.3 (zeta), as in the paper.
        soft: draw survivors, as CHTs; otherwise keep the largest, as CHT.
        score: what importance is: ``magnitude``, or ``relative``, ``|w|`` as part of its output's plus as part of its
            input's total.
        grow: ``ch3_l3``, drawn, as CHTs; ``CH3L3(soft=False)`` takes the best, as CHT.
        chain: names or globs of linear layers that follow one another from input to output, such as ``("*",)`` in a plain MLP;
            between them units without a way in or out lose all their links. Empty (default): nothing is removed so.
        sparsity, allocation: 0.99 and ``uniform``, as in the paper.
        init: ``kaiming``, the sparse initialisation of the paper for every unit's own inputs.

    Differences from the authors' code: scores are CH3-L3 in the node form, which is a product of matrices; the first paper sums
    over paths, the second prefers CH2. A link that is removed and regrown in one update keeps its weight. The extra links of
    the EM_S variant, early stopping by layer and correlated or small-world initial topologies are left out.
    """

    sparsity: float = 0.99
    allocation: str | Allocation = "uniform"
    init: Init = "kaiming"
    drop_by: Literal["signed", "magnitude"] = "magnitude"
    grow: str | Growth = "ch3_l3"
    soft: bool = True
    score: Literal["magnitude", "relative"] = "magnitude"
    chain: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_by != "magnitude":
            raise ValueError(
                "CHT drops by magnitude, of both signs together; use score='relative' for its other rule"
            )
        if self.score not in ("magnitude", "relative"):
            raise ValueError(f"unknown score {self.score!r}: choose magnitude or relative")
        if isinstance(pattern(self.pattern), (Block, Gates, Groups)):
            raise ValueError(
                f"CHT links single units, and pattern {self.pattern} keeps connections together: use 'unstructured', 'fan-in' "
                "or n:m"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        plain = dataclasses.replace(self, chain=(), soft=False, score="magnitude", grow="random")
        yield from super(CHT, dataclasses.replace(self, chain=())).limits()
        yield plain, plain.reduced_to(SET)

    def choose(self, sparsifier: Sparsifier, step: int) -> Iterator[tuple[Connections, Rewiring]]:
        fraction = value_at(self.drop, step, self.run_length)
        power = 1.0 + 2.0 * step / self.run_length
        survivors = {}
        for c in sparsifier.trained.values():
            strength = c.pool(importance(c, self.score))
            if self.soft:
                strength = drawn(strength.double() ** power, sparsifier.generator)
            survivors[c] = top_k(strength, c.kept - math.floor(fraction * c.kept + 1e-9))
        for c, alive in (survivors | self._connected(survivors)).items():
            yield c, c.rewired(alive, self.growth_in(c, sparsifier, step), sparsifier.generator)

    def start(self, layout: Plan) -> Plan:
        """The plan itself, once the chain is found in it."""
        for glob in self.chain:
            if not any(fnmatchcase(row.name, glob) for row in layout.sparse):
                known = ", ".join(row.name for row in layout.sparse)
                raise ValueError(f"chain: {glob!r} matches none of the parameters to make sparse, {known}")
        for before, after in pairwise(row for row in layout.sparse if self._chained(row.name)):
            if len(before.shape) + len(after.shape) > 4 or before.shape[0] != after.shape[1]:
                raise ValueError(
                    f"chain: {before.name} {list(before.shape)} and {after.name} {list(after.shape)} do not follow one another: "
                    "name linear layers, each with as many inputs as the one before has outputs"
                )
        return layout

    def _chained(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.chain)

    def _connected(self, survivors: Mapping[Connections, Tensor]) -> dict[Connections, Tensor]:
        """The survivors in the layers of the chain that lie on a path from its input to its output."""
        layers = [c for c in survivors if self._chained(c.name)]
        graphs = []
        for c in layers:
            graph = torch.zeros(c.numel, dtype=torch.bool, device=c.device)
            graph[c.positions[survivors[c]]] = True
            graphs.append(graph.view(c.weight.shape[0], -1))
        left = without_dead_ends(graphs)
        return {c: graph.flatten()[c.positions] for c, graph in zip(layers, left, strict=True)}


def importance(connections: Connections, score: Literal["magnitude", "relative"]) -> Tensor:
    """``[kept]``: ``|w|``, or ``|w|`` as part of all of its output plus as part of all of its input."""
    magnitude = connections.values.abs()
    if score == "magnitude":
        return magnitude
    inputs = connections.numel // connections.weight.shape[0]
    total = torch.zeros_like(magnitude)
    for unit in (connections.positions // inputs, connections.positions % inputs):
        sums = magnitude.new_zeros(int(unit.max()) + 1 if unit.numel() else 0).index_add_(0, unit, magnitude)
        total += magnitude / sums[unit].clamp(min=torch.finfo(magnitude.dtype).tiny)
    return total
