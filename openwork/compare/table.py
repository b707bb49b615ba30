"""One row a method: as a table for people, or as JSON for programs, from the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Speed:
    """Forward pass of one batch.

    Attributes:
        dense: milliseconds of the same architecture with all its weights, by the fastest dense kernels found
            here.
        packed: milliseconds of this model, packed.
        dense_spread: first and third quartile of ``dense``.
        packed_spread: the same of ``packed``.
    """

    dense: float
    packed: float
    dense_spread: tuple[float, float]
    packed_spread: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times as fast as dense."""
        return self.dense / self.packed


@dataclass(frozen=True)
class Row:
    """What came out for one method at one sparsity.

    Attributes:
        method: its name.
        sparsity_asked: fraction of zeros asked for, over the weights the method covers.
        sparsity: fraction achieved.
        kept: connections kept in those weights, exactly.
        accuracy_mean: fraction of the test part classified correctly, mean over seeds.
        accuracy_std: standard deviation over seeds (n - 1); None for a single seed.
        accuracies: one a seed.
        validation_mean: the same on the validation part, by which settings and the best model are chosen.
        train_seconds: of one run, mean over seeds.
        file_bytes: of the saved model.
        parameter_bytes: of parameters and indices in memory.
        train_state_bytes: values, gradients, optimizer state and indices while training.
        latency_ms: batch size -> forward pass.
        layouts: batch size -> layer -> how it is stored and computed.
    """

    method: str
    sparsity_asked: float
    sparsity: float
    kept: int
    accuracy_mean: float
    accuracy_std: float | None
    accuracies: tuple[float, ...]
    validation_mean: float
    train_seconds: float
    file_bytes: int
    parameter_bytes: int
    train_state_bytes: int
    latency_ms: Mapping[int, Speed]
    layouts: Mapping[int, Mapping[str, str]]


def as_json(row: Row) -> dict[str, object]:
    """The row as plain data for ``json.dumps``; latencies have their ratio beside them."""
    plain: dict[str, object] = {field.name: getattr(row, field.name) for field in fields(row)}
    plain["accuracies"] = list(row.accuracies)
    plain["latency_ms"] = {
        str(batch): {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(speed).items()
        }
        | {"ratio": speed.ratio}
        for batch, speed in row.latency_ms.items()
    }
    plain["layouts"] = {str(batch): dict(layers) for batch, layers in row.layouts.items()}
    return plain


def cells(row: Row) -> dict[str, str]:
    """The row as a person reads it: column -> text, of several lines where that saves width."""
    spread = "" if row.accuracy_std is None else f" ± {100 * row.accuracy_std:.1f}"
    speeds = {
        f"ms at {batch}": f"{milliseconds(speed.dense)} → {milliseconds(speed.packed)}\n{speed.ratio:.1f}x"
        for batch, speed in row.latency_ms.items()
    }
    return {
        "method": row.method,
        "asked": f"{100 * row.sparsity_asked:g} %",
        "sparsity": f"{100 * row.sparsity:.3f} %",
        "kept": thousands(row.kept),
        "accuracy %": f"{100 * row.accuracy_mean:.1f}{spread}",
        "file kB": kilobytes(row.file_bytes),
        "weights kB": kilobytes(row.parameter_bytes),
        "training kB": kilobytes(row.train_state_bytes),
        **speeds,
        "layouts": layouts(row),
    }


def layouts(row: Row) -> str:
    """A line a layer: its layouts from the smallest batch to the largest, once where all are the same."""
    by_batch = [chosen for _, chosen in sorted(row.layouts.items())]
    lines = []
    for layer in by_batch[0] if by_batch else ():
        names = [chosen[layer] for chosen in by_batch]
        lines.append(f"{layer} {' / '.join(names) if len(set(names)) > 1 else names[0]}")
    return "\n".join(lines)


def milliseconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"


def kilobytes(count: int) -> str:
    """Thousands of bytes, as disks are sold."""
    return thousands(round(count / 1000))


def thousands(count: int) -> str:
    """An integer in groups of three digits."""
    return f"{count:,}".replace(",", " ")


def table(rows: Sequence[Row], title: str | None = None) -> Table:
    """The rows as a table that rich can print; columns that hold numbers are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left")
    records = [cells(row) for row in rows]
    for column in records[0] if records else []:
        drawn.add_column(column, justify="left" if column in ("method", "layouts") else "right")
    before = rows[0].sparsity_asked if rows else 0.0
    for row, record in zip(rows, records, strict=True):
        if row.sparsity_asked != before:
            drawn.add_section()
            before = row.sparsity_asked
        drawn.add_row(*(Text(cell) for cell in record.values()))
    return drawn
