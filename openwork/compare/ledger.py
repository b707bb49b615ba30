"""What a long comparison has done so far: one line a finished run, in a file that is whole at every moment.

A run is known by everything that decides its outcome, so a comparison that is started again, with more seeds or other
methods, takes from the file what is there and runs the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from openwork.durable import replacing

Cell = dict[str, Any]
"""The outcome of one run as plain data."""


class _Finished(msgspec.Struct):
    """What a line has, whatever else it has."""

    key: str
    contestant: str
    sparsity_asked: float
    failed: str = ""
    kept: int = 0
    sparsity: float = 0.0
    test_accuracy: float = 0.0
    test_loss: float = 0.0
    train_loss: float = 0.0
    validation_accuracy: float = 0.0
    validation_loss: float = 0.0
    seconds: float = 0.0


class Ledger:
    """Finished runs by their keys.

    Args:
        path: of the JSON lines file; made, with its folder, when the first run is entered.

    Raises:
        ValueError: there is a file of that name that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, Cell] = {}
        if path.exists():
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                try:
                    finished = msgspec.json.decode(line, type=_Finished)
                    self.cells[finished.key] = msgspec.json.decode(line, type=Cell)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    raise ValueError(
                        f"line {number} of {path} is no finished run, so it was not written by a comparison: choose another "
                        "folder, or remove the line"
                    ) from error

    def get(self, key: str) -> Cell | None:
        """The run of that key, if it is finished."""
        return self.cells.get(key)

    def enter(self, key: str, cell: Cell) -> Cell:
        """Add a finished run; the file is replaced by one that has it."""
        self.cells[key] = {"key": key, **cell}
        text = "".join(json.dumps(cell, ensure_ascii=False) + "\n" for cell in self.cells.values())
        content = text.encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path, len(content)) as partial:
            partial.write_bytes(content)
        return self.cells[key]


def key(what: Mapping[str, Any]) -> str:
    """The name of a run: equal if and only if everything that was told of it is."""
    told = json.dumps(what, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(told.encode(), digest_size=10).hexdigest()
