"""``openwork bench``: from which sparsity on is sparse faster than the best dense kernel, on this machine."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from openwork.cli.output import JSON, say, show, show_json


def bench(
    *,
    layer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("1024x1024",),
    batch: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 8, 64, 256),
    sparsity: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.5, 0.75, 0.9, 0.95, 0.99),
    pattern: str = "unstructured",
    seconds: float = 0.4,
    threads: int | None = None,
    all_layouts: bool = False,
    json: JSON = False,
) -> None:
    """Measure layers in every layout against every dense kernel, taking turns, and show where sparse begins to win.

    Parameters
    ----------
    layer
        Shapes of layers, outputs x inputs.
    batch
        Samples (or tokens, or pixels) in a call.
    sparsity
        Fractions of zeros.
    pattern
        Pattern of the random masks, such as "block 4x1" or "2:4".
    seconds
        Time to spend on each combination.
    threads
        How many threads to use; as many as torch would by default.
    all_layouts
        Show every layout, not only the fastest of each combination.
    """
    import torch

    from openwork.compare.breakeven import break_even, measure
    from openwork.compare.machine import machine

    if threads is not None:
        torch.set_num_threads(threads)
    rows = measure([_shape(text) for text in layer], batch, sparsity, spelling=pattern, seconds=seconds)
    wins = break_even(rows)
    if json:
        measured = [{**asdict(row), "ratio": row.ratio} for row in rows]
        show_json(
            {"machine": asdict(machine()), "rows": measured, "break_even": [asdict(point) for point in wins]}
        )
        return
    say(str(machine()))
    shown = (
        rows
        if all_layouts
        else [row for row in rows if row.ms == min(r.ms for r in rows if _same_case(r, row))]
    )
    show(
        [
            {
                "layer": f"{row.shape[0]}x{row.shape[1]}",
                "batch": row.batch,
                "sparsity": f"{row.sparsity:.3f}",
                "layout": row.layout,
                "ms": f"{row.ms:.4f}",
                "quartiles": f"{row.low_ms:.4f}..{row.high_ms:.4f}",
                "best dense": row.dense,
                "dense ms": f"{row.dense_ms:.4f}",
                "ratio": f"{row.ratio:.2f}x",
                "GFLOP/s": f"{row.gflops:.1f}",
            }
            for row in shown
        ]
    )
    for point in wins:
        layer_name = f"{point.shape[0]}x{point.shape[1]} at batch {point.batch}"
        if point.sparsity is None:
            say(f"{layer_name}: dense wins at every sparsity measured")
        else:
            say(f"{layer_name}: sparse wins from a sparsity of {point.sparsity:.2f} on ({point.layout})")


def _same_case(a: object, b: object) -> bool:
    return all(getattr(a, key) == getattr(b, key) for key in ("shape", "batch", "sparsity"))


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise ValueError(f"a layer is written as outputs x inputs, such as 1024x784; got {text!r}")
    return int(match[1]), int(match[2])
