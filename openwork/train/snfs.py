"""SNFS, sparse momentum: SET whose connections also move from layer to layer."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from openwork.allocation import Allocation, exact_counts
from openwork.connections import Connections, Rewiring
from openwork.growth import Growth, scores_at
from openwork.method import Method, method
from openwork.patterns import Unstructured, pattern
from openwork.schedules import Cosine, Scalar, value_at
from openwork.sparsifier import Sparsifier
from openwork.train.set import SET

Share = Literal["momentum", "magnitude", "nonzeros", "none"]


@method(
    paper="Dettmers & Zettlemoyer, Sparse Networks from Scratch: Faster Training without Losing Performance, 2019, "
    "arXiv 1907.04840",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class SNFS(SET):
    """Sparse momentum: the momentum says which layer deserves connections, and which of the missing ones to add.

    With the dense momentum ``m`` of every parameter ``l`` of ``L``, kept also where no connection is, an update is::

        v_l   = mean |m| over the active connections of l, divided by the sum of all v
        r_l   = drop, or min(sparsity_l, drop) where a layer is nearly full and still growing: sparsity_l < 0.2 and v_l > 1/L
        drop  the floor(r_l n_l) smallest |w| in each parameter; R of them in all
        grow  v_l R connections in parameter l: those of largest |m|, starting from zero

    No parameter fills more than 99 % of its free places; what would not fit goes to all parameters in equal parts. With
    ``redistribute="none"`` and ``grow="random"`` this is SET by magnitude. It needs the dense gradient at every step, so it
    saves neither time nor memory in training, and parameters that take part must be masked; shares by ``magnitude`` or
    ``nonzeros`` with growth by ``gradient`` or at ``random`` also work stored.

    Args:
        drop: 0.5 falling to 0.005 along a cosine over the whole run, as in the authors' code.
        grow: where new connections go within a parameter; ``momentum``.
        redistribute: what the shares ``v`` are made of: ``momentum``; ``magnitude``, the mean ``|w|``; ``nonzeros``, the
            number of connections; ``none``, each parameter regrows what it lost. Parameters with an override always do.
        sparsity, allocation: 0.95 and ``uniform``, where the authors start.

    Differences from the authors' code: ``m`` decays by 0.9 whatever the optimizer, where theirs reads Adam's normalised moment.
    What is dropped in all is grown in all, exactly, so there is no drift to control. Updates come every ``every`` steps, theirs
    once an epoch.
    """

    splits: ClassVar[bool] = True

    sparsity: float = 0.95
    allocation: str | Allocation = "uniform"
    drop: Scalar = Cosine(start=0.5, stop=0.005)
    drop_by: Literal["signed", "magnitude"] = "magnitude"
    grow: str | Growth = "momentum"
    redistribute: Share = "momentum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redistribute not in ("momentum", "magnitude", "nonzeros", "none"):
            raise ValueError(
                f"unknown redistribute {self.redistribute!r}: choose momentum, magnitude, nonzeros or none"
            )
        if self.redistributes and not isinstance(pattern(self.pattern), Unstructured):
            raise ValueError(
                f"redistribute={self.redistribute!r} moves single connections between parameters, and pattern {self.pattern} "
                "fixes how they come: use pattern='unstructured' or redistribute='none'"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield from super().limits()
        fixed = dataclasses.replace(self, redistribute="none", grow="random")
        yield fixed, fixed.reduced_to(SET)

    @property
    def growth_needs(self) -> frozenset[str]:
        return super().growth_needs | ({"momentum"} if self.redistribute == "momentum" else set())

    @property
    def redistributes(self) -> bool:
        return self.redistribute != "none"

    def choose(self, sparsifier: Sparsifier, step: int) -> Iterator[tuple[Connections, Rewiring]]:
        fraction = value_at(self.drop, step, self.run_length)
        several = [c for c in sparsifier.trained.values() if self.redistributes and not self._pinned(c.name)]
        shares = dict(zip(several, _normalised([self._strength(c) for c in several]), strict=True))
        survivors = {}
        for c in sparsifier.trained.values():
            sparsity = 1.0 - c.kept / c.numel
            growing = c in shares and sparsity < 0.2 and shares[c] > 1.0 / len(shares)
            survivors[c] = self.survivors(c, min(sparsity, fraction) if growing else fraction)
        dropped = {c: int((~survivors[c]).sum()) for c in survivors}
        free = [c.numel - c.kept + dropped[c] for c in several]
        grown = dropped | dict(
            zip(several, regrown(list(shares.values()), sum(dropped[c] for c in several), free), strict=True)
        )
        for c, alive in survivors.items():
            rule = self.growth_in(c, sparsifier, step)
            yield c, c.rewired(alive, rule, sparsifier.generator, torch.tensor([grown[c]]))

    def _pinned(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for glob in self.overrides)

    def _strength(self, connections: Connections) -> float:
        if self.redistribute == "nonzeros" or not connections.kept:
            return float(connections.kept)
        if self.redistribute == "magnitude":
            return float(connections.values.abs().double().mean())
        return float(scores_at(connections.momentum_tiles(), connections.positions).double().mean())


def regrown(shares: Sequence[float], total: int, free: Sequence[int]) -> list[int]:
    """Split ``total`` new connections by ``shares``, which sum to 1, among parameters with so many ``free`` places.

    No parameter gets more than 99 % of its free places, unless there is no room elsewhere. What does not fit is offered to all in
    equal parts, until everything has found its place.
    """
    caps = [0.99 * places for places in free]
    wanted = [share * total for share in shares]
    for _ in range(1000):  # as many rounds as the authors allow
        overflow = sum(max(w - cap, 0.0) for w, cap in zip(wanted, caps, strict=True))
        wanted = [min(w, cap) for w, cap in zip(wanted, caps, strict=True)]
        if overflow < 1e-6 or wanted == caps:
            break
        wanted = [w + overflow / len(wanted) for w in wanted]
    return exact_counts(wanted, free, total)


def _normalised(strengths: Sequence[float]) -> list[float]:
    """Shares that sum to 1; equal ones where nothing is known, as before the first gradient."""
    total = sum(strengths)
    return [s / total if total > 0 else 1.0 / len(strengths) for s in strengths]
