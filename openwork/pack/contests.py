"""The contests of a model: of every layer by itself, and of the layers that read the same tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from openwork.layouts.conv import convolution_of
from openwork.layouts.conv_layout import ConvLayout, Size
from openwork.layouts.packed import DenseLinear, PackedLinear
from openwork.layouts.packed_conv import FoldedBatchNorm2d, PackedConv, folded
from openwork.layouts.packed_conv import connections_of as conv_connections
from openwork.pack.behind import Behind
from openwork.pack.choice import choose
from openwork.pack.conv import ConvTrial, packed_conv
from openwork.pack.decisions import Decision, Together
from openwork.pack.linear import Chosen, LinearTrial, connections_of
from openwork.pack.memory import Memory
from openwork.pack.siblings import together_where_faster


@dataclass(frozen=True)
class Contests:
    """How they are held.

    Attributes:
        seconds: to spend on measuring each.
        memory: times that are known.
    """

    seconds: float
    memory: Memory | None

    def linear(
        self, name: str, layer: nn.Module, sizes: Sequence[int], after: Behind, weight_dtype: torch.dtype
    ) -> tuple[Chosen, list[Decision]]:
        """The fastest layout of a linear layer for each size of batch."""
        activation = layer.activation if isinstance(layer, (PackedLinear, DenseLinear)) else after.kind
        chosen = Chosen(layer, activation, weight_dtype, *connections_of(layer))
        told = []
        for batch in sizes:
            trial = LinearTrial(chosen.topology, chosen.values, batch, weight_dtype, activation)
            chosen.by_batch[batch], decision = choose(name, trial, self.seconds, self.memory)
            told.append(decision)
        return chosen, told

    def conv(
        self, name: str, layer: nn.Conv2d, sizes: Sequence[Size], after: Behind, norm: nn.BatchNorm2d | None
    ) -> tuple[nn.Module, list[Decision]]:
        """What takes the place of a convolution: its fastest layouts, with the norm behind it folded in."""
        taken, activation = FoldedBatchNorm2d.of(norm) if norm else None, after.kind
        if isinstance(layer, PackedConv):
            taken, activation = layer.norm, layer.activation
        weights = folded(conv_connections(layer), taken)
        chosen: dict[Size, ConvLayout] = {}
        told = []
        for size in sizes:
            trial = ConvTrial(convolution_of(layer), weights, size, activation)
            chosen[size], decision = choose(name, trial, self.seconds, self.memory)
            told.append(decision)
        return packed_conv(layer, chosen, activation, taken), told

    def siblings(self, groups: Sequence[Sequence[str]], linear: dict[str, Chosen]) -> tuple[Together, ...]:
        """Let layers that read the same tensor be computed together where that is faster; what was measured."""
        told = [
            together_where_faster(names, [linear[name] for name in names], self.seconds, self.memory)
            for names in groups
        ]
        return tuple(one for group in told for one in group)
