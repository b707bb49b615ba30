"""A small decoder-only transformer for characters.

A. Radford et al., Language models are unsupervised multitask learners (GPT-2), 2019: norms before attention
and perceptron, learned positions, GELU. Query, key and value come from one linear layer.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.tasks.initial import seeded


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, length, width]`` to the same; position i sees positions 0 to i."""
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention, then a perceptron four times as wide; both add to what is carried along."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(width, 4 * width), act=nn.GELU(), down=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[n, length, width]`` to the same."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class GPT(nn.Module):
    """Embeddings, blocks, and a head of its own weights. Made by :func:`gpt_small`."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 tokens ``[n, length]`` to logits ``[n, length, vocabulary]`` of the token after each."""
        length = tokens.shape[-1]
        if length > self.context:
            raise ValueError(f"this model knows {self.context} positions and was given {length} tokens")
        x = self.tokens(tokens) + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def gpt_small(
    vocabulary: int = 65,
    context: int = 128,
    *,
    width: int = 128,
    heads: int = 4,
    depth: int = 4,
    seed: int | torch.Generator = 0,
) -> GPT:
    """A decoder of 0.8 million weights, as it stands here, with the vocabulary of Tiny Shakespeare.

    Args:
        vocabulary: number of tokens.
        context: longest input.
        width: of every position's vector, a multiple of ``heads``.
        heads: of attention, in each block.
        depth: number of blocks.
        seed: of the initial weights.
    """
    if width % heads:
        raise ValueError(f"a width of {width} cannot be split among {heads} heads")
    return seeded(lambda: GPT(vocabulary, context, width, heads, depth), seed, deviation=0.02)
