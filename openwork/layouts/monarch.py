"""A weight as two block-diagonal matrices with a transposition between them: two batches of small products.

In sizes: ``blocks`` = K blocks ``[q, p]`` take the inputs, ``K p >= in``; their outputs are dealt out in turn to K blocks
``[s, q]``, ``K s >= out``, whose outputs are dealt out in turn again. What is beyond ``in`` and ``out`` is padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openwork.layouts.structured import StructuredLinear

F = nn.functional


class MonarchLinear(StructuredLinear):
    """Monarch: ``h[k, :] = A_k x[k, :]``, ``h`` dealt out to ``g[l, :]``, ``y[:, l] = B_l g[l, :]``.

    Args:
        first: ``A [K, q, p]``.
        second: ``B [K, s, q]``.
        in_features, out_features: at most ``K p`` and ``K s``.
        bias: ``[out]``, or None.
    """

    def __init__(
        self, first: Tensor, second: Tensor, in_features: int, out_features: int, bias: Tensor | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias)
        blocks, q, p = first.shape
        if second.shape[0] != blocks or second.shape[2] != q:
            raise ValueError(
                f"blocks {list(first.shape)} and {list(second.shape)} do not follow one another: as many, with as "
                "many inputs as the first have outputs"
            )
        if not (blocks * p >= in_features and blocks * second.shape[1] >= out_features):
            raise ValueError(
                f"blocks {list(first.shape)} and {list(second.shape)} are too small for {in_features} inputs and "
                f"{out_features} outputs"
            )
        self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(second.clone())

    def product(self, x: Tensor) -> Tensor:
        blocks, q, p = self.first.shape
        x = F.pad(x, (0, blocks * p - self.in_features)).unflatten(-1, (blocks, p))
        h = torch.einsum("...kp,kqp->...kq", x, self.first)
        dealt = h.flatten(-2).unflatten(-1, (q, blocks))
        y = torch.einsum("...rl,lsr->...sl", dealt, self.second)
        return y.flatten(-2)[..., : self.out_features]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocks={len(self.first)}"

    @classmethod
    def nearest(cls, weight: Tensor, blocks: int, bias: Tensor | None = None) -> MonarchLinear:
        """The Monarch matrix nearest to ``weight [out, in]`` in the Frobenius norm, in closed form.

        Seen as ``W[s, l, k, p]``, every slice ``(l, k)`` of a Monarch matrix has the rank of the number of hidden units that
        block ``k`` deals to block ``l``, and slices do not share parameters: each is cut to its largest singular values, whose
        roots go to either side. What is left is the sum of the squares of the others.
        """
        q, p, s = sizes(weight.shape[0], weight.shape[1], blocks)
        padded = F.pad(
            weight.detach().double(), (0, blocks * p - weight.shape[1], 0, blocks * s - weight.shape[0])
        )
        slices = padded.view(s, blocks, blocks, p).permute(1, 2, 0, 3)  # [l, k, s, p]
        u, sigma, v = torch.linalg.svd(slices, full_matrices=False)
        root = sigma.sqrt()
        first = weight.new_zeros(blocks, q, p, dtype=torch.float64)
        second = weight.new_zeros(blocks, s, q, dtype=torch.float64)
        for hidden in range(blocks * q):
            k, row, to, column = hidden // q, hidden % q, hidden % blocks, hidden // blocks
            term = row // blocks  # as many of block k were dealt to the same block before
            first[k, row] = root[to, k, term] * v[to, k, term]
            second[to, :, column] = root[to, k, term] * u[to, k, :, term]
        return cls(first.to(weight.dtype), second.to(weight.dtype), weight.shape[1], weight.shape[0], bias)

    @classmethod
    def drawn(
        cls, shape: tuple[int, int], blocks: int, generator: torch.Generator, bias: Tensor | None = None
    ) -> MonarchLinear:
        """A random one for a weight of ``shape``: uniform in every block, with the variance ``1 / (3 inputs of the block)`` that
        torch gives to linear layers."""
        q, p, s = sizes(*shape, blocks)

        def block_diagonal(outputs: int, inputs: int) -> Tensor:
            uniform = torch.rand(blocks, outputs, inputs, generator=generator) * 2 - 1
            return uniform / math.sqrt(inputs)

        return cls(block_diagonal(q, p), block_diagonal(s, q), shape[1], shape[0], bias)


def sizes(outputs: int, inputs: int, blocks: int) -> tuple[int, int, int]:
    """``(q, p, s)`` for a weight ``[outputs, inputs]``: the hidden units are as many as its shorter side.

    Raises:
        ValueError: there are more blocks than units on the shorter side.
    """
    if not 1 <= blocks <= min(outputs, inputs):
        raise ValueError(f"{blocks} blocks do not fit a weight of {outputs} outputs and {inputs} inputs")
    p, s = -(-inputs // blocks), -(-outputs // blocks)
    return min(p, s), p, s
