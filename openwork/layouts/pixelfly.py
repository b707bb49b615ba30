"""A weight as a fixed pattern of blocks plus a low-rank term.

A product of butterfly matrices mixes everything with everything in ``log n`` steps that follow one another. Flattened, it
is a *sum*: one block-sparse matrix, in which block row ``i`` has the block columns ``i`` and ``i XOR 2^j``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openwork.layouts.structured import StructuredLinear

F = nn.functional


def butterfly(grid: int, factors: int) -> Tensor:
    """The flat butterfly pattern: bool ``[grid, grid]``, True at ``(i, i)`` and ``(i, i XOR 2^j)`` for ``j < factors``.

    Raises:
        ValueError: ``grid`` is no power of 2, or has fewer factors than that.
    """
    if grid < 1 or grid & (grid - 1):
        raise ValueError(f"a butterfly has a power of 2 blocks a side; got {grid}")
    if not 0 <= factors <= grid.bit_length() - 1:
        raise ValueError(f"a grid of {grid} has 0 to {grid.bit_length() - 1} factors; got {factors}")
    i = torch.arange(grid)
    columns = torch.stack([i] + [i ^ (1 << j) for j in range(factors)], 1)
    return torch.zeros(grid, grid, dtype=torch.bool).scatter_(1, columns, True)


def stretched(pattern: Tensor, rows: int, columns: int) -> Tensor:
    """A square pattern on ``rows x columns`` blocks, at least as many as it has: each of its places covers an equal part."""
    grid = len(pattern)
    if rows < grid or columns < grid:
        raise ValueError(f"a pattern of {grid} x {grid} blocks does not shrink to {rows} x {columns}")
    i, j = (torch.arange(n) * grid // n for n in (rows, columns))
    return pattern[i][:, j]


class PixelflyLinear(StructuredLinear):
    """Pixelated butterfly: ``W = g S + (1 - g) U V``, ``S`` of blocks in a fixed pattern, ``g`` the sigmoid of a learned number.

    Args:
        blocks: values ``[active, b, b]`` of the blocks of ``S``, in order of the pattern.
        pattern: which of the blocks ``[rows, columns]`` there are, bool.
        left: ``U [out, rank]``.
        right: ``V [rank, in]``.
        in_features, out_features: at most ``columns * b`` and ``rows * b``; what is beyond is padding.
        bias: ``[out]``, or None.
    """

    def __init__(
        self,
        blocks: Tensor,
        pattern: Tensor,
        left: Tensor,
        right: Tensor,
        in_features: int,
        out_features: int,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        active, b = int(pattern.sum()), blocks.shape[-1]
        if tuple(blocks.shape) != (active, b, b):
            raise ValueError(
                f"the pattern has {active} blocks, and the values given are {list(blocks.shape)}"
            )
        if not (pattern.shape[1] * b >= in_features and pattern.shape[0] * b >= out_features):
            raise ValueError(
                f"{list(pattern.shape)} blocks of {b} x {b} are too few for {in_features} inputs and {out_features} outputs"
            )
        self.blocks = nn.Parameter(blocks.clone())
        self.left, self.right = nn.Parameter(left.clone()), nn.Parameter(right.clone())
        self.gate = nn.Parameter(torch.zeros((), dtype=blocks.dtype, device=blocks.device))
        self.register_buffer("pattern", pattern)
        self.pattern: Tensor

    @property
    def block(self) -> int:
        """Units on the side of a block."""
        return int(self.blocks.shape[-1])

    def product(self, x: Tensor) -> Tensor:
        rows, columns = self.pattern.nonzero(as_tuple=True)
        inputs = F.pad(x, (0, self.pattern.shape[1] * self.block - self.in_features))
        gathered = inputs.unflatten(-1, (-1, self.block))[..., columns, :]
        products = torch.einsum("...nj,nij->...ni", gathered, self.blocks)
        sums = products.new_zeros(*x.shape[:-1], self.pattern.shape[0], self.block)
        sparse = sums.index_add(-2, rows, products).flatten(-2)[..., : self.out_features]
        share = self.gate.sigmoid()
        return share * sparse + (1.0 - share) * (x @ self.right.T @ self.left.T)

    def extra_repr(self) -> str:
        density = float(self.pattern.double().mean())
        return f"{super().extra_repr()}, block={self.block}, density={density:.3g}, rank={self.left.shape[1]}"

    @classmethod
    def near(
        cls, weight: Tensor, block: int, grid: int, factors: int, rank: int, bias: Tensor | None = None
    ) -> PixelflyLinear:
        """Close to ``weight [out, in]``: its blocks in the pattern, and the best low-rank term for what they leave."""
        pattern = pattern_for(weight.shape[0], weight.shape[1], block, grid, factors)
        padded = _padded(weight.detach(), pattern, block)
        tiles = padded.unflatten(0, (-1, block)).unflatten(-1, (-1, block)).permute(0, 2, 1, 3)
        rest = torch.where(pattern[:, :, None, None], 0, tiles).permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
        u, sigma, v = torch.linalg.svd(
            rest[: weight.shape[0], : weight.shape[1]].double(), full_matrices=False
        )
        root = (2.0 * sigma[:rank]).sqrt()  # both terms count half at first
        left, right = (u[:, :rank] * root).to(weight.dtype), (root[:, None] * v[:rank]).to(weight.dtype)
        return cls(2.0 * tiles[pattern], pattern, left, right, weight.shape[1], weight.shape[0], bias)

    @classmethod
    def drawn(
        cls,
        shape: tuple[int, int],
        block: int,
        grid: int,
        factors: int,
        rank: int,
        generator: torch.Generator,
        bias: Tensor | None = None,
    ) -> PixelflyLinear:
        """A random one for a weight of ``shape``. Both terms have the variance of a dense layer's outputs (``2 / inputs``, He),
        corrected for the inputs that a block row has."""
        pattern = pattern_for(*shape, block, grid, factors)
        rows, _ = pattern.nonzero(as_tuple=True)
        inputs = (pattern.sum(1) * block)[rows].view(-1, 1, 1).double()
        blocks = torch.randn(len(rows), block, block, generator=generator) * (2.0 / inputs).sqrt().float()
        left = torch.randn(shape[0], rank, generator=generator) / math.sqrt(max(1, rank))
        right = torch.randn(rank, shape[1], generator=generator) * math.sqrt(2.0 / shape[1])
        return cls(blocks, pattern, left, right, shape[1], shape[0], bias)


def pattern_for(outputs: int, inputs: int, block: int, grid: int, factors: int) -> Tensor:
    """The stretched butterfly on the blocks of a weight ``[outputs, inputs]``.

    Raises:
        ValueError: the weight has fewer blocks a side than the grid.
    """
    rows, columns = -(-outputs // block), -(-inputs // block)
    if min(rows, columns) < grid:
        raise ValueError(
            f"a weight of {outputs} outputs and {inputs} inputs has {rows} x {columns} blocks of {block}, and the butterfly has "
            f"{grid} x {grid}: use smaller blocks or a smaller grid"
        )
    return stretched(butterfly(grid, factors), rows, columns)


def _padded(weight: Tensor, pattern: Tensor, block: int) -> Tensor:
    rows, columns = (n * block for n in pattern.shape)
    return F.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))
