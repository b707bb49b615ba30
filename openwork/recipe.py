"""Recipes: methods that work one after another, written down in a TOML file.

.. code-block:: toml

    [[stage]]
    method = "wanda"
    sparsity = 0.6
    overrides = { "*.down_proj.weight" = 0.5 }

    [[stage]]
    method = "perp_blocks"
    train = ["bias", "norm"]

A stage has the options of its method (``openwork methods perp_blocks`` shows them) and none other. An option that is a value
with options of its own is a table with its ``type``: ``allocation = { type = "Global", floor = 0.0005 }``. What
:meth:`openwork.Method.record` gives can be read back.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openwork import allocation, growth, layer_allocation, patterns, schedules
from openwork.method import Method, get
from openwork.quantization import integers

_VALUES = {
    name: found
    for page in (allocation, layer_allocation, patterns, schedules, growth, integers)
    for name, found in vars(page).items()
    if isinstance(found, type)
    and dataclasses.is_dataclass(found)
    and found.__module__.startswith(page.__name__)
}


def read(path: str | os.PathLike[str]) -> list[Method]:
    """Read a recipe.

    Raises:
        ValueError: naming the stage and the key that is wrong, and the nearest one that is right.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of its bytes, its grammar, its numbers, its brackets
        raise ValueError(f"{path}: not a TOML file ({error})") from error
    _refuse_unknown(content, ["stage"], f"{path}: a recipe")
    stages = content.get("stage")
    if not isinstance(stages, list) or not stages:
        raise ValueError(f"{path}: a recipe has one or more stages, each under [[stage]]")
    return [stage(options, f"{path}: stage {number}") for number, options in enumerate(stages, 1)]


def stage(options: object, where: str = "the stage") -> Method:
    """Make a method of its name and options.

    Args:
        options: ``method`` and any options of it, as plain data.
        where: how an error begins.

    Raises:
        ValueError: no such method or option, or a value that it cannot have.
    """
    if not isinstance(options, Mapping) or not isinstance(options.get("method"), str):
        raise ValueError(f'{where}: name its method, as in method = "wanda"')
    try:
        cls = get(options["method"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    given = {key: value for key, value in options.items() if key != "method"}
    _refuse_unknown(given, fields, f"{where}: {cls.name}")
    try:
        return cls(**{key: _value(value, fields[key]) for key, value in given.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(value: Any, field: dataclasses.Field[Any]) -> Any:
    """A value as the method has it, of the type of the option's default."""
    if isinstance(value, Mapping) and "type" in value:
        return _typed(value)
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(field.default, (bool, int, float, str, tuple)):
        kind = type(field.default)
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise ValueError(
                f"{field.name} is {_kind(field.default)}, such as {field.default!r}; got {value!r}"
            )
    return value


def _typed(table: Mapping[str, Any]) -> Any:
    name = table["type"]
    if name not in _VALUES:
        near = difflib.get_close_matches(str(name), _VALUES, n=1, cutoff=0.4)
        raise ValueError(f"there is no {name}{f'; did you mean {near[0]}?' if near else ''}")
    cls = _VALUES[name]
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    given = {key: value for key, value in table.items() if key != "type"}
    _refuse_unknown(given, fields, name)
    return cls(**{key: _value(value, fields[key]) for key, value in given.items()})


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{where} has no {key!r}: {hint}")


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list"}
    return names[type(value)]
