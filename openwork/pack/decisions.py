"""What packing chose, layer by layer, and what it measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from openwork.tables import table

MARGIN = 1.05
"""How many times faster a kernel must be before it takes a layer's place: less could be noise."""


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
class Compiled:
    """What was measured for the dense model under ``torch.compile``, at one size of batch.

    Attributes:
        batch: samples in a call.
        compiled_ms: milliseconds of the dense model as the compiler makes it fastest; None where it could not.
        packed_ms: milliseconds of the packed model beside it.
        failed: why the compiler could not.
    """

    batch: int
    compiled_ms: float | None
    packed_ms: float | None
    failed: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster the packed model is; below one, the compiled dense model is faster."""
        return self.compiled_ms / self.packed_ms if self.compiled_ms and self.packed_ms else math.nan

    def __str__(self) -> str:
        at = f"torch.compile, batch {self.batch}:"
        if self.compiled_ms is None or self.packed_ms is None:
            return f"{at} it could not compile the dense model ({self.failed})"
        times = f"{self.compiled_ms:.3f} ms for the dense model, {self.packed_ms:.3f} ms packed"
        if self.ratio > MARGIN:
            return f"{at} {times}: packed is {self.ratio:.2f} times as fast"
        if self.ratio * MARGIN >= 1.0:
            return f"{at} {times}: about the same"
        return f"{at} {times}: THE COMPILED DENSE MODEL IS {1 / self.ratio:.2f} TIMES AS FAST: compile it rather than pack it"


@dataclass(frozen=True)
class Together:
    """What was measured for layers that read the same tensor, at one size of batch.

    Attributes:
        layers: their names.
        batch: samples in a call.
        form: ``apart``, or ``together`` and in which layout.
        apart_ms: milliseconds one after the other, each as it was chosen.
        packed_ms: milliseconds in the form chosen.
    """

    layers: tuple[str, ...]
    batch: int
    form: str
    apart_ms: float
    packed_ms: float

    def __str__(self) -> str:
        apart = f"({self.apart_ms:.4f} ms apart)"
        return f"{', '.join(self.layers)}, batch {self.batch}: {self.form}, {self.packed_ms:.4f} ms {apart}"


@dataclass(frozen=True)
class Chained:
    """What was measured for the chains of a model: layers that hand their activations on in tiles.

    Attributes:
        names: of the modules that have such layers: an ``nn.Sequential``, or one whose code calls them in a line.
        form: ``chained`` or ``layers``.
        layers_ms: milliseconds of the whole model without chains.
        packed_ms: milliseconds in the form chosen.
    """

    names: tuple[str, ...]
    form: str
    layers_ms: float
    packed_ms: float

    def __str__(self) -> str:
        names = ", ".join(name or "the model" for name in self.names)
        return f"chain in {names}: {self.form}, {self.packed_ms:.3f} ms ({self.layers_ms:.3f} ms without)"


@dataclass(frozen=True)
class Decisions:
    """What :func:`pack_` chose, layer by layer, for the network as a whole, for layers that read the same tensor, and for chains;
    and how the dense model does under ``torch.compile``, if that was asked for. Print it, or iterate over its rows.
    """

    rows: tuple[Decision, ...]
    whole: tuple[Whole, ...] = ()
    together: tuple[Together, ...] = ()
    chained: Chained | None = None
    compiled: tuple[Compiled, ...] = ()

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
        busy = sum(not row.calm for row in self.rows)
        note = [
            f"{busy} of {len(self.rows)} choices were made while other processes kept the cores busy: pack again when it is calm"
        ]
        chained = [] if self.chained is None else [self.chained]
        told = [str(one) for one in (*self.together, *chained, *self.whole, *self.compiled)]
        return "\n".join([*table(header, lines), *told, *(note if busy else [])])
