"""What packing chose, layer by layer, and what it measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """What was measured for one layer at one size of batch.

    Attributes:
        layer: its name.
        shape: ``(out, in, *kernel)``.
        kept: connections.
        batch: samples (or tokens, or images) in a call.
        layout: the layout chosen.
        dense: the fastest dense kernel.
        dense_ms: its median milliseconds.
        packed_ms: median milliseconds of the layout chosen.
        why: the reason, in words.
        calm: whether few samples were interrupted by other processes; a choice made on a busy machine is a guess.
    """

    layer: str
    shape: tuple[int, ...]
    kept: int
    batch: int
    layout: str
    dense: str
    dense_ms: float
    packed_ms: float
    why: str
    calm: bool = True

    @property
    def sparsity(self) -> float:
        size = math.prod(self.shape)
        return 1.0 - self.kept / size if size else 0.0

    @property
    def ratio(self) -> float:
        """How many times faster than the fastest dense kernel."""
        return self.dense_ms / self.packed_ms


@dataclass(frozen=True)
class Whole:
    """What was measured for a network of convolutions as a whole at one size of batch.

    Attributes:
        batch: images in a call.
        form: how it runs: layer after layer, or as a network that keeps images in the order of the kernels.
        layers_ms: milliseconds layer after layer, each as it was chosen.
        packed_ms: milliseconds in the form chosen.
    """

    batch: int
    form: str
    layers_ms: float
    packed_ms: float

    def __str__(self) -> str:
        layers = f"({self.layers_ms:.3f} ms layer after layer)"
        return f"as a whole, {self.batch} images: {self.form}, {self.packed_ms:.3f} ms {layers}"


@dataclass(frozen=True)
class Decisions:
    """What :func:`pack_` chose, layer by layer, and for the network as a whole. Print it, or iterate over its rows."""

    rows: tuple[Decision, ...]
    whole: tuple[Whole, ...] = ()

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        header = ("layer", "shape", "sparsity", "batch", "layout", "ms", "best dense", "ms", "ratio", "why")
        lines = [
            (
                row.layer,
                "x".join(map(str, row.shape)),
                f"{row.sparsity:.3f}",
                str(row.batch),
                row.layout,
                f"{row.packed_ms:.4f}",
                row.dense,
                f"{row.dense_ms:.4f}",
                f"{row.ratio:.2f}x",
                row.why,
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        table = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in [header, *lines]
        ]
        busy = sum(not row.calm for row in self.rows)
        note = [
            f"{busy} of {len(self.rows)} choices were made while other processes kept the cores busy: pack again when it is calm"
        ]
        return "\n".join([*table, *map(str, self.whole), *(note if busy else [])])
