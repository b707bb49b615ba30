"""Random parameter sharing: all weights of a model are read from one small array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from openwork.layouts.shared import SharedLinear, Sharing, places
from openwork.method import method
from openwork.restructuring import Restructuring


@method(
    paper="Desai & Shrivastava, In Defense of Parameter Sharing for Model-Compression, ICLR 2024, arXiv 2310.11611; "
    "Chen et al., Compressing Neural Networks with the Hashing Trick, ICML 2015, arXiv 1504.04788",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class RPS(Restructuring):
    """Read every weight from an array ``A`` that is ``compression`` times smaller than all of them: the rival of pruning at equal
    memory, since no index is stored and no weight is zero.

    Connection ``i`` of the model, in layer ``l``, is::

        W_i = c_l g_i A[h(i)]         dL/dA_j = sum over i with h(i) = j of c_l g_i G_i, divided by the sum of their c_l^2

    with ``c_l`` the ratio of the layer's deviation at the start (He's) to that of ``A``, ``g_i`` a sign and ``h`` a hash: all
    three follow from shapes and seed, and a file need hold the array alone. The division keeps the step in weight space
    independent of how many connections read a cell. It saves memory, not arithmetic: a layer computes with its weight, made
    anew in every pass.

    Args:
        compression: how many connections there are for each cell of the array.
        sharing: ``stable`` (the paper's: every cell is read equally often; with ``compression=1`` the array is the model),
            ``roast`` (rows of 32 read from consecutive cells) or ``hashed`` (every connection on its own).
        scaled: divide gradients as above; without, training of large compressions is unstable, as the paper shows for its
            predecessors.
    """

    compression: float = 100.0
    sharing: Sharing = "stable"
    scaled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compression < 1:
            raise ValueError(
                f"sharing needs at least one connection a cell; got compression={self.compression}"
            )
        places(torch.zeros(1, dtype=torch.int64), 1, self.sharing, 0)

    def forms(self, layers: Mapping[str, nn.Linear]) -> Mapping[str, nn.Module | str]:
        if not layers:
            return {}
        weights = [layer.weight.detach() for layer in layers.values()]
        total = sum(w.numel() for w in weights)
        cells = math.ceil(total / self.compression - 1e-9)
        firsts = [sum(w.numel() for w in weights[:i]) for i in range(len(weights))]
        if cells == total and self.sharing == "stable":
            memory, scales = torch.cat([w.flatten() for w in weights]), [1.0] * len(weights)
        else:
            deviations = [math.sqrt(2.0 / w.shape[1]) for w in weights]
            mean = math.sqrt(sum(w.numel() * d * d for w, d in zip(weights, deviations, strict=True)) / total)
            drawn = torch.randn(cells, generator=self.generator("memory"), dtype=torch.float64)
            memory, scales = (mean * drawn).to(weights[0]), [d / mean for d in deviations]
        users = torch.full((cells,), 1e-6, dtype=torch.float64)
        for w, first, scale in zip(weights, firsts, scales, strict=True):
            where = places(
                torch.arange(first, first + w.numel()), cells, self.sharing, self.seed, inputs=w.shape[1]
            )
            users.index_add_(0, where, torch.full((w.numel(),), scale**2, dtype=torch.float64))
        shared, divisor = nn.Parameter(memory), users.to(memory) if self.scaled else None
        return {
            name: SharedLinear(
                shared, (w.shape[0], w.shape[1]), first, scale, self.sharing, self.seed, divisor, layer.bias
            )
            for (name, layer), w, first, scale in zip(layers.items(), weights, firsts, scales, strict=True)
        }
