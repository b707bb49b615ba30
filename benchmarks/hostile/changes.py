"""Ways to spoil bytes, values that JSON can hold, and arrays."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
NUMBERS = [
    -(2**63), -1, 0, 1, 2, 7, 8, 40, 255, 65535, 65536, 2**24,
    2**31 - 2, 2**31 - 1, 2**31, 2**40, 2**62, 2**64, 10**30,
]  # fmt: skip
WORDS = [
    "", "x", "csr", "dense", "bitmask", "openwork", "a.weight", "..", "/etc/passwd", "\x00", "é" * 40, "9" * 5000, *DTYPES,
]  # fmt: skip
DEEP = 100_000
"""Levels of brackets in brackets: more than any parser that calls itself can follow."""


def damage(whole: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Change bytes as a disk, a cut connection or a careless program does."""
    data = bytearray(whole)
    kind = chance.choice(["flip", "flip", "cut", "add", "zero", "move", "splice"])
    place = chance.randrange(len(data))
    if kind == "flip":
        for _ in range(chance.choice([1, 1, 2, 9])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "add":
        data += chance.randbytes(chance.randrange(1, 99))
    elif kind == "zero":
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    elif kind == "move":
        del data[place : place + chance.randrange(1, 9)]
    else:
        data[place:place] = data[chance.randrange(len(data)) :][: chance.randrange(1, 400)]
    return kind, bytes(data)


def anything(chance: random.Random) -> object:
    """A value that JSON can hold."""
    number, word = chance.choice(NUMBERS), chance.choice(WORDS)
    return chance.choice(
        [number, word, None, True, [number, 0], [0, number], [number], [word], {word: number}, [], {}, 1.5]
    )


def edit_tree(tree: Any, chance: random.Random, other: Any = anything) -> Any:
    """A copy of nested lists and mappings with one thing different: replaced by ``other(chance)``, dropped, or twice there."""
    tree = copy.deepcopy(tree)
    at: Any = tree
    while True:
        places = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not places:
            return other(chance)
        place = chance.choice(places)
        inner = at[place]
        if not (isinstance(inner, (dict, list)) and inner and chance.random() < 0.8):
            break
        at = inner
    kind = chance.random()
    if kind < 0.15:
        del at[place]
    elif kind < 0.25 and isinstance(at, list):
        at.append(inner)
    elif kind < 0.25:
        at[chance.choice(WORDS)] = inner
    else:
        at[place] = other(chance)
    return tree


def edit_tensor(like: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """A tensor like another, but not it: entries, length, order, precision, or where its numbers lie in memory."""
    flat = like.flatten()
    ways = [
        flat.view(torch.uint8).flip(0).view(like.dtype).view(like.shape),
        flat[:-1],
        torch.cat([flat, flat]),
        like[None],
        like.new_zeros(0),
        like.new_zeros(3, 0, 2**30),
        flat[:1].clone().expand(2**40) if like.numel() else like,
        like.to(chance.choice([torch.float64, torch.int64, torch.uint8])),
        torch.empty(like.shape, dtype=like.dtype, device="meta"),
    ]
    if like.numel():
        changed = like.clone()
        entries = changed.view(-1)
        numbers: list[Any] = [0, 1, 2, 19, 20, 99, 200]
        if like.is_floating_point():
            numbers += [float("nan"), float("inf"), -0.0, 1e30]
        elif like.dtype != torch.bool:
            info = torch.iinfo(like.dtype)
            numbers = [n for n in [*NUMBERS, *numbers] if info.min <= n <= info.max]
        place = chance.randrange(like.numel())
        if like.dtype in (torch.uint16, torch.uint32, torch.uint64):
            entries.view(torch.uint8)[chance.randrange(like.nbytes)] ^= 1 << chance.randrange(8)
        else:
            entries[place] = chance.choice(numbers)
        ways += [changed] * 12
    return chance.choice(ways)
