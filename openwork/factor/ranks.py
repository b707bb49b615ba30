"""How many ranks each layer keeps, when so many parameters may remain in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.factorization import Factors, break_even, truncated


def uniform_rank(shape: tuple[int, ...], ratio: float, multiple: int = 1) -> int:
    """The rank at which two factors hold ``ratio`` of the parameters of ``[out, in]``, rounded down; at least 1."""
    out, inputs = shape
    rank = int(ratio * out * inputs / (out + inputs))
    return max(1, rank - rank % multiple)


def allocated(
    spectra: Mapping[str, tuple[tuple[int, ...], Tensor]], ratio: float, multiple: int = 1
) -> dict[str, int]:
    """Ranks that keep the most energy for ``ratio`` of the parameters.

    Every layer's energies count relative to their sum, for each parameter that the rank takes. The largest are kept, which is
    the best there is because energies fall within a layer. A layer that would keep more than it saves stays dense, and the others
    share what that leaves.

    Args:
        spectra: layer -> shape ``(out, in)`` and energy of each rank, descending (:attr:`Factors.energy`).
        ratio: of the parameters of all layers together.
        multiple: ranks come in runs of so many.

    Returns:
        Layer -> rank, at least ``multiple`` or the full rank.
    """
    budget = ratio * sum(out * inputs for (out, inputs), _ in spectra.values())
    dense: set[str] = set()
    while True:
        left = budget - sum(_size(spectra[name][0]) for name in dense)
        open_ = {name: entry for name, entry in spectra.items() if name not in dense}
        ranks = _greedy(open_, left, multiple)
        over = {name for name, rank in ranks.items() if rank > break_even(*spectra[name][0])}
        if not over:
            full = {name: min(spectra[name][0]) for name in dense}
            return {name: (full | ranks)[name] for name in spectra}
        dense |= over


def _greedy(
    spectra: Mapping[str, tuple[tuple[int, ...], Tensor]], budget: float, multiple: int
) -> dict[str, int]:
    ranks: dict[str, int] = {}
    steps: list[tuple[float, str, int, int]] = []
    for name, (shape, energy) in spectra.items():
        cost, gains = sum(shape), energy.double() / energy.double().sum().clamp(min=1e-300)
        ranks[name] = min(multiple, *shape)
        budget -= ranks[name] * cost
        for first in range(multiple, min(shape), multiple):
            run = gains[first : first + multiple]
            steps.append((-float(run.sum()) / (len(run) * cost), name, len(run), len(run) * cost))
    for _, name, more, cost in sorted(steps, key=lambda step: step[0]):
        if cost > budget:
            break
        ranks[name], budget = ranks[name] + more, budget - cost
    return ranks


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1]


def _plain(layer: Layer, rank: int) -> Factors:
    return truncated(layer.weight, rank)


@dataclass(frozen=True, kw_only=True)
class Spectrum(Calibrated):
    """A stage that changes nothing and notes the energies of every layer.

    Args:
        solver: ``(layer, rank) -> factors``, whose energies are noted.
    """

    name: ClassVar[str] = "spectrum"
    reads_zeros: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    solver: Callable[[Layer, int], Factors] = _plain

    def solve(self, layer: Layer) -> Solution:
        energy = self.solver(layer, 1).energy
        return Solution(layer.weight, parts={"shape": tuple(layer.shape), "energy": torch.as_tensor(energy)})
