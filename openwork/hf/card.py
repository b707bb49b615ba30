"""The page that tells what was done to a model, and how good, small and fast it is: ``README.md`` of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import openwork


@dataclass(frozen=True)
class Card:
    """What is known about a compressed model. Nothing is said that was not measured.

    Attributes:
        base: what it was made from: a folder or the id of a model.
        history: what was done, in order, each a record of a method (:meth:`openwork.Method.record`).
        layers: rows ``parameter``, ``kept``, ``of``, ``density``.
        quality: rows ``measure``, ``dense``, ``sparse``: before and after.
        size: rows ``what``, ``dense``, ``sparse``, in bytes.
        speed: rows ``what``, ``dense``, ``sparse``, and where it was measured.
        sparse: whether the folder holds only kept weights, so that it takes openwork to load it.
        loader: the class of transformers that loads it.
        done: what was done to the base, in two words.
    """

    base: str
    history: Sequence[Mapping[str, object]] = ()
    layers: Sequence[Mapping[str, object]] = ()
    quality: Sequence[Mapping[str, object]] = ()
    size: Sequence[Mapping[str, object]] = ()
    speed: Sequence[Mapping[str, object]] = ()
    sparse: bool = False
    loader: str = "AutoModel"
    done: str = "made sparse"
    tags: Sequence[str] = field(default=("openwork", "sparse", "pruned"))

    def __str__(self) -> str:
        kept = sum(int(str(row["kept"])) for row in self.layers)
        total = sum(int(str(row["of"])) for row in self.layers)
        sections = [
            "---\nlibrary_name: transformers\ntags:\n"
            + "\n".join(f"- {tag}" for tag in self.tags)
            + "\n---\n",
            f"# {self.base}, {self.done}\n",
            f"Made from `{self.base}` by openwork {openwork.__version__}.",
        ]
        if total:
            sections.append(
                f"{len(self.layers)} parameters keep {kept} of {total} weights, a sparsity of {1 - kept / total:.4f}.\n"
            )
        sections += [self._use(), _section("Quality", self.quality), _section("Size in bytes", self.size)]
        sections.append(_section("Speed", self.speed))
        if self.history:
            steps = "\n".join(
                json.dumps(dict(step), ensure_ascii=False, default=str) for step in self.history
            )
            sections.append(f"## How it was made\n\n```json\n{steps}\n```\n")
        sections.append(_section("Layers", self.layers))
        return "\n".join(section for section in sections if section)

    def _use(self) -> str:
        lines = [
            f"from transformers import {self.loader}",
            "",
            f"model = {self.loader}.from_pretrained(folder)",
        ]
        if self.sparse:
            lines = [
                "import openwork.hf  # so that transformers knows the storage; it refuses the weights without",
                *lines,
            ]
        return "## Use\n\n```python\n" + "\n".join(lines) + "\n```\n"


def _section(title: str, rows: Sequence[Mapping[str, object]]) -> str:
    """A table in Markdown, or nothing where there is nothing to say."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row.get(column)) for column in columns] for row in rows),
    ]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
