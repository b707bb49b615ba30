"""``openwork inspect``: what is in a file."""

import dataclasses
from pathlib import Path

from openwork.cli.output import JSON, show_json


def inspect(path: Path, /, *, json: JSON = False) -> None:
    """Show what is in a file without loading it: tensors, layouts, kept counts, bytes, and its history.

    Parameters
    ----------
    path
        A file written by openwork.
    """
    from openwork import files

    report = files.inspect(path)
    if json:
        show_json(dataclasses.asdict(report))
    else:
        print(report)
