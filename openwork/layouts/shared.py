"""A weight read from a small array that all layers of a model share: memory of any size, and no zeros."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from openwork.layouts.structured import StructuredLinear

Sharing = Literal["stable", "roast", "hashed"]


class SharedLinear(StructuredLinear):
    """``W = scale * sign * memory[places]``: places and signs follow from a seed, the memory is trained.

    Args:
        memory: ``[m]``, the same parameter in every layer that shares it.
        shape: ``(out, in)`` of the weight.
        first: number of its first connection among those of all layers.
        scale: of the layer; fixed.
        kind: how places are chosen, see :func:`places`.
        seed: of places and signs.
        users: ``[m]``: by what the gradient of every cell is divided, such as the sum of the squared scales of all connections
            that read it; None leaves it as it is.
        bias: ``[out]``, or None.
    """

    def __init__(
        self,
        memory: nn.Parameter,
        shape: tuple[int, int],
        first: int,
        scale: float,
        kind: Sharing,
        seed: int,
        users: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(shape[1], shape[0], bias)
        self.memory = memory
        self.first, self.scale, self.kind, self.seed = first, scale, kind, seed
        numbers = torch.arange(first, first + shape[0] * shape[1])
        where, sign = places(numbers, len(memory), kind, seed, inputs=shape[1]), signs(numbers, kind, seed)
        # both follow from the seed, so a file need not hold them
        self.register_buffer("where", where.view(shape).to(memory.device), persistent=False)
        self.register_buffer("sign", sign.view(shape).to(memory), persistent=False)
        self.where: Tensor
        self.register_buffer("users", users, persistent=False)
        self.sign: Tensor
        self.users: Tensor | None

    def dense(self) -> Tensor:
        read: Tensor = _Read.apply(self.memory, self.where, self.scale * self.sign, self.users)  # type: ignore[no-untyped-call]
        return read

    def product(self, x: Tensor) -> Tensor:
        return x @ self.dense().T

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}, scale={self.scale:.3g}"


class _Read(torch.autograd.Function):
    """``factor * memory[where]``, whose gradient is summed cell by cell and divided by ``users``."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, where: Tensor, factor: Tensor, users: Tensor | None) -> Tensor:
        ctx.save_for_backward(where, factor, users)
        ctx.cells = len(memory)
        return factor * memory[where]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (where, factor, users) = gradients, ctx.saved_tensors
        summed = gradient.new_zeros(ctx.cells).index_add_(0, where.flatten(), (gradient * factor).flatten())
        return (summed if users is None else summed / users), None, None, None


def places(numbers: Tensor, memory: int, kind: Sharing, seed: int, *, inputs: int = 1) -> Tensor:
    """Where in a memory of ``memory`` cells connections are read, the same on every machine.

    - ``hashed``: anywhere, independently (HashedNets);
    - ``roast``: rows of 32 consecutive connections are read from consecutive cells, each row from anywhere;
    - ``stable``: the connections of the whole model are cut into chunks as long as the memory, and each chunk is the memory
      turned by some offset, so that cells are used equally often (STABLE-RPS).

    Args:
        numbers: int64, of connections, counted through the whole model.
        memory: number of cells.
        kind: as above.
        seed: of the hash.
        inputs: of the layer; rows do not reach beyond those.
    """
    if kind == "stable":
        chunk = numbers // memory
        # the first chunk is not turned: a memory as large as the model is the model
        offset = torch.where(chunk > 0, hashed(chunk, seed, memory), 0)
        return (offset + numbers % memory) % memory
    if kind == "roast":
        row = (numbers // inputs) * (1 << 24) + numbers % inputs // 32
        return (hashed(row, seed, memory) + numbers % inputs % 32) % memory
    if kind == "hashed":
        return hashed(numbers, seed, memory)
    raise ValueError(f"unknown sharing {kind!r}: choose stable, roast or hashed")


def signs(numbers: Tensor, kind: Sharing, seed: int) -> Tensor:
    """1 or -1 for each connection; always 1 for ``stable``, where a memory of the model's size is the model itself."""
    if kind == "stable":
        return torch.ones_like(numbers)
    return 1 - 2 * hashed(numbers, seed + 1, 2)


def hashed(numbers: Tensor, seed: int, below: int) -> Tensor:
    """Int64 numbers, each to one in ``[0, below)``: the mixing of SplitMix64, in wrapping int64 arithmetic."""
    start = ((seed + 1) * 0x9E3779B97F4A7C15 + (1 << 63)) % (1 << 64) - (1 << 63)
    x = numbers + start
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ _unsigned_shift(x, shift)) * factor
    x = x ^ _unsigned_shift(x, 31)
    return _unsigned_shift(x, 2) % below


def _unsigned_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
