"""``openwork bench``: from which sparsity on is sparse faster than the best dense kernel, on this machine?"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
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
    page: Path | None = None,
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
    page
        Also write the break-even curves to this HTML file.
    """
    import torch

    from openwork.compare import curves
    from openwork.compare.breakeven import break_even, fastest, measure
    from openwork.compare.machine import machine
    from openwork.compare.roofline import roof
    from openwork.method import check_fraction

    for fraction in sparsity:
        check_fraction("--sparsity", fraction)
    if threads is not None:
        torch.set_num_threads(threads)
    shapes, limits = [_shape(text) for text in layer], roof()
    rows = measure(shapes, batch, sparsity, spelling=pattern, seconds=seconds, roof=limits)
    wins = break_even(rows)
    if page is not None:
        page.write_text(curves.page(rows, limits), encoding="utf-8")
        say(f"written: {page}")
    if json:
        found = {
            "machine": asdict(machine()),
            "roof": None if limits is None else asdict(limits),
            "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
            "break_even": [asdict(point) for point in wins],
        }
        show_json(found)
        return
    say(str(machine()))
    if limits is not None:
        say(curves.limits(limits))
    show([curves.cells(row) for row in (rows if all_layouts else fastest(rows))])
    for point in wins:
        say(curves.told(point))


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise ValueError(f"a layer is written as outputs x inputs, such as 1024x784; got {text!r}")
    return int(match[1]), int(match[2])
