"""Tables as plain text: what a verb did, a line a row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> list[str]:
    """The lines of a table, its header first.

    Args:
        header: the name of each column.
        rows: as many cells each.
        numbers: names of the columns that are aligned to the right.
    """
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    turned = [str.rjust if name in numbers else str.ljust for name in header]
    return [
        "  ".join(
            align(cell, width) for align, cell, width in zip(turned, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
