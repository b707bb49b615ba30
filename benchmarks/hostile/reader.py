"""What all kinds of input have in common."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Reader(ABC):
    """Sound inputs of one kind, ways to spoil them, and what reads them.

    Args:
        folder: an empty one, for its files.
    """

    refusals: ClassVar[tuple[type[Exception], ...]]
    """How an input may be refused. Anything else is a fault of the reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        """Spoil an input; returns what was done, and words of which the refusal must have each."""

    @abstractmethod
    def read(self, chance: random.Random) -> None:
        """Read it, and compute with what came out."""
