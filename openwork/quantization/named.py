"""Grids by name: ``int4``, ``int4-symmetric``, ``e2m1``."""

from __future__ import annotations

import re

from openwork.quantization.floats import FloatGrid
from openwork.quantization.grids import Grid
from openwork.quantization.integers import IntegerGrid


def grid(spec: str | Grid) -> Grid:
    """The grid that a name means; a grid is returned as it is.

    ``int4`` has a zero point of its own in every group, ``int4-symmetric`` has zero in the middle, ``int4-clip`` searches for
    the best range, ``int4-symmetric-clip`` both; with ``-float16`` or ``-bfloat16`` behind, scales are stored so; ``e2m1`` is a
    float of two exponent bits and one mantissa bit.

    Raises:
        ValueError: no grid is called so.
    """
    if isinstance(spec, Grid):
        return spec
    text = spec.strip().lower()
    if found := re.fullmatch(r"int(\d)(-symmetric)?(-clip)?(?:-(b?float16))?", text):
        symmetric, clip = found[2] is not None, found[3] is not None
        return IntegerGrid(int(found[1]), symmetric=symmetric, clip=clip, scales=found[4] or "float32")
    if found := re.fullmatch(r"e(\d)m(\d)", text):
        return FloatGrid(int(found[1]), int(found[2]))
    raise ValueError(
        f"no grid is called {spec!r}: write int4, int4-symmetric, int4-clip, int4-float16 or e2m1 with other numbers, or pass a "
        "Grid"
    )
