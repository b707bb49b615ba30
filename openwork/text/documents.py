"""Texts from a ``.txt`` file, a ``.jsonl`` file, or a data set of the Hugging Face hub, one document after another.

==================================================  =========================================================================
``notes.txt``                                       the whole file is one document
``articles.jsonl``                                  one JSON object a line; its ``text`` is the document
``allenai/c4:en[train]``                            data set, its configuration, its part; both may be left out
==================================================  =========================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from openwork.extras import require

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<configuration>[\w.-]+))?(?:\[(?P<part>[\w.-]+)\])?")


def documents(source: str | os.PathLike[str], *, field: str = "text") -> Iterator[str]:
    """Read documents one by one; nothing is read before the first is asked for.

    Args:
        source: a file or a data set, as above. What exists as a file is a file.
        field: which field of a record holds the text.

    Yields:
        The documents that are not empty, in order. A data set of the hub is streamed, never downloaded whole.

    Raises:
        ValueError: the source is neither, it holds no text, or a line of it is not a record with that field.
        FileNotFoundError: there is no such file.
        MissingExtra: a data set of the hub needs the package ``datasets``.
    """
    path, count = Path(source), 0
    if path.suffix == ".jsonl":
        found = _records(path, field)
    elif path.suffix == ".txt" or path.is_file():
        found = iter([_whole(path)])
    elif hub := _HUB.fullmatch(os.fspath(source)):
        found = _streamed(hub["name"], hub["configuration"], hub["part"] or "train", field)
    else:
        raise ValueError(
            f"texts come from a .txt file, a .jsonl file, or a data set of the hub such as 'allenai/c4:en[train]'; "
            f"{os.fspath(source)!r} is none of them"
        )
    for text in found:
        if text.strip():
            count += 1
            yield text
    if not count:
        raise ValueError(f"{os.fspath(source)} holds no text")


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error})") from error


def _records(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:  # of its bytes, its numbers, its brackets
                    raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
                yield _text(record, field, f"{path}, line {number}")


def _streamed(name: str, configuration: str | None, part: str, field: str) -> Iterator[str]:
    datasets = require("datasets", extra="eval", to=f"read the data set {name} of the hub")
    for number, record in enumerate(
        datasets.load_dataset(name, configuration, split=part, streaming=True), 1
    ):
        yield _text(record, field, f"{name}, record {number}")


def _text(record: object, field: str, where: str) -> str:
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = (
            f"it has {', '.join(map(str, record))}" if isinstance(record, dict) else "it is no record at all"
        )
        raise ValueError(f"{where}: no text under {field!r}; {has}")
    return text
