"""Data to stdout, as a table for people or as JSON for programs; talk to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

Record: TypeAlias = Mapping[str, object]

JSON: TypeAlias = Annotated[
    bool, Parameter(name="--json", show_default=False, help="Print JSON instead of a table.")
]


def show(records: Sequence[Record], *, as_json: bool = False) -> None:
    """Print records with the same keys, one a row, or all of them as one JSON array."""
    if as_json:
        show_json(records)
    elif records:
        show_table(_table(records))


def show_rounded(records: Sequence[Record]) -> None:
    """Print a table under what is there already, with four digits behind each point; nothing where there are no records."""
    if records:
        print()
        show([{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in records])


def show_table(table: Table) -> None:
    """Print a table of rich. A pipe has no width: nothing is folded, cut or filled up there."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(table)
    else:
        wide = Console(width=10_000)
        with wide.capture() as lines:
            wide.print(table)
        print("\n".join(line.rstrip() for line in lines.get().splitlines()))


def show_json(data: object) -> None:
    """Print one JSON value; what JSON has no word for is written as its ``str``."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def say(message: str) -> None:
    """Tell the user something that is not the result."""
    print(message, file=sys.stderr)


def quiet_transformers(to: str) -> None:
    """Turn off the progress bars of transformers, which would stand between ours, or say what to install.

    Args:
        to: what it is needed for.
    """
    from openwork.extras import require

    require("transformers", extra="hf", to=to).utils.logging.disable_progress_bar()


def complaint(error: Exception) -> str:
    """Return an error as the user reads it, its notes (``error.add_note``) as hints."""
    return "\n".join([f"error: {error}", *(f"hint: {note}" for note in getattr(error, "__notes__", []))])


def _table(records: Sequence[Record]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, value in records[0].items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        table.add_column(column, justify="right" if is_number else "left")
    for record in records:
        # Text, not str: a shape such as [300, 784] is not markup
        table.add_row(*(Text("" if value is None else str(value)) for value in record.values()))
    return table
