"""Texts: recipes, finished runs, measured times, documents, pairs of sentences."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from hostile.changes import DEEP, anything, damage, edit_tree
from hostile.reader import Reader
from openwork import recipe
from openwork.compare.comparison import lines
from openwork.compare.ledger import Ledger
from openwork.pack.memory import Memory
from openwork.quality.similarity import read_pairs
from openwork.text.documents import documents

RECIPE = """
[[stage]]
method = "sparsegpt"
sparsity = 0.6
allocation = {type = "Uniform"}

[[stage]]
method = "gptq"
grid = {type = "IntegerGrid", bits = 3}
exclude = ["*.head.*"]
"""
RUN = {"key": "k", "contestant": "rigl", "method": {"method": "rigl"}, "seed": 1, "sparsity_asked": 0.9, "kept": 30,
       "sparsity": 0.9, "test_accuracy": 0.5, "test_loss": 1.5, "train_loss": 1.0, "seconds": 2.0}  # fmt: skip
TIMES = {"a": {"csr": 1.5e-5, "dense": 2e-5}, "b": {"dense": 0.1}}


class Texts(Reader):
    """A text that cannot be believed is refused with its path, and the line where there is one; a memory of times is a cache,
    and what is wrong in it is forgotten."""

    refusals = (ValueError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        jsonl = "".join(json.dumps(row) + "\n" for row in [RUN, RUN | {"key": "l", "failed": "no"}])
        texts = "".join(json.dumps({"text": word, "n": 1}) + "\n" for word in ["one", "zwölf", "a b"])
        pairs = "".join(f"g\tf\ty\t{n}\t{n}.5\tone sentence\tanother\n" for n in range(4))
        self.sound: dict[str, tuple[str, Callable[[Path], object]]] = {
            "recipe.toml": (RECIPE, recipe.read),
            "runs.jsonl": (jsonl, self._table),
            "times.json": (json.dumps(TIMES), self._recall),
            "texts.jsonl": (texts, lambda path: list(documents(path))),
            "text.txt": ("Grüße\n" * 9, lambda path: list(documents(path))),
            "pairs.tsv": (pairs, read_pairs),
        }

    @staticmethod
    def _table(path: Path) -> None:
        done: dict[tuple[float, str], list[dict[str, object]]] = {}
        for cell in Ledger(path).cells.values():
            done.setdefault((cell["sparsity_asked"], cell["contestant"]), []).append(cell)
        lines(done)

    def _recall(self, path: Path) -> None:
        memory = Memory(path)
        for key in ("a", "b", "c"):
            times = memory.recall(key)
            assert times is None or all(isinstance(t, float) and t > 0 for t in times.values())

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        name = chance.choice(list(self.sound))
        text, self.reads = self.sound[name]
        self.path = self.folder / name
        kind = chance.choice(["bytes", "edited", "deep"] if chance.random() < 0.1 else ["bytes", "edited"])
        content = text.encode()
        if kind == "edited" and name.endswith(("jsonl", "json")):
            rows = [json.loads(line) for line in text.splitlines()]
            row = chance.randrange(len(rows))
            rows[row] = anything(chance) if chance.random() < 0.1 else edit_tree(rows[row], chance)
            content = "\n".join(map(json.dumps, rows)).encode()
        elif kind == "edited" and name.endswith("toml"):
            found = text.splitlines()
            row = chance.randrange(len(found))
            value = json.dumps(anything(chance)).replace("null", "nan")
            key = (
                found[row].partition("=")[0]
                if "=" in found[row]
                else chance.choice(["seed ", "stage ", "pattern ", "every "])
            )
            found[row] = f"{key}= {value}"
            content = "\n".join(found).encode()
        elif kind == "deep":
            content = b"x = " * name.endswith("toml") + b"[" * DEEP + b"]" * DEEP
        else:
            kind, content = damage(content, chance)
        self.path.write_bytes(content)
        return f"{name}: {kind}", [str(self.path)]

    def read(self, chance: random.Random) -> None:
        self.reads(self.path)
