"""Codes of a few bits, packed into bytes.

The codes of a row follow one another without gaps, the low bits of a byte first: at four bits the low half of a byte is the
earlier code. Only the end of a row is filled with zeros to a whole byte.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that hold ``count`` codes."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes [..., n]`` (uint8, each below ``2 ** bits``) as bytes ``[..., ceil(n * bits / 8)]``.

    Raises:
        ValueError: a code needs more bits.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8 or (bits < 8 and codes.numel() and int(codes.max()) >= 2**bits):
        raise ValueError(f"codes of {bits} bits are uint8 below {2**bits}; got {_found(codes)}")
    stream = (codes.unsqueeze(-1) >> _shifts(bits, codes)) & 1
    stream = stream.flatten(-2)
    filled = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    packed: Tensor = (filled << _shifts(8, codes)).sum(-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack`: uint8 ``[..., count]``.

    Raises:
        ValueError: the bytes are not those of so many codes.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_bytes(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits are {packed_bytes(count, bits)} bytes (uint8); "
            f"got {packed.shape[-1]} of {packed.dtype}"
        )
    if 8 % bits == 0:  # no code crosses a byte
        places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        whole: Tensor = ((packed.unsqueeze(-1) >> places) & (2**bits - 1)).flatten(-2)
        return whole[..., :count]
    stream = ((packed.unsqueeze(-1) >> _shifts(8, packed)) & 1).flatten(-2)
    split = stream[..., : count * bits].unflatten(-1, (count, bits))
    codes: Tensor = (split << _shifts(bits, packed)).sum(-1, dtype=torch.uint8)
    return codes


def _shifts(bits: int, like: Tensor) -> Tensor:
    return torch.arange(bits, dtype=torch.uint8, device=like.device)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"a code has 1 to 8 bits; got {bits}")


def _found(codes: Tensor) -> str:
    return f"{codes.dtype}" if codes.dtype != torch.uint8 else f"a code of {int(codes.max())}"
