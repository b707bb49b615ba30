"""``openwork methods``: the shelf of methods, and the page of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Annotated, TypedDict

from cyclopts import Parameter

from openwork.cli.output import JSON, show, show_json

if TYPE_CHECKING:
    from openwork.method import Method


class Option(TypedDict):
    """One setting of a method: a field of its dataclass."""

    option: str
    type: str
    default: str | None
    meaning: str


class Page(TypedDict):
    """All there is to read about a method. Its page in the documentation is made from the same record."""

    name: str
    kind: str
    paper: str
    text: str
    options: list[Option]


def _known(_: object, name: str | None) -> None:
    """Refuse a method that does not exist; the registry names the nearest one."""
    from openwork.method import get

    if name is not None:
        get(name)


def methods(
    name: Annotated[str | None, Parameter(validator=_known)] = None, /, *, json: JSON = False
) -> None:
    """List the methods, or show the page of one.

    Parameters
    ----------
    name
        A method, as in the list: its page is shown, with every option and its default.
    """
    from openwork.method import get, pages

    if name is None:
        records = [dict(zip(("name", "kind", "what", "paper"), line, strict=True)) for line in pages()]
        show(
            records if json else [record | {"what": spoken(record["what"])} for record in records],
            as_json=json,
        )
    elif json:
        show_json(page(get(name)))
    else:
        found = page(get(name))
        print(f"{found['name']} ({found['kind']})\n{found['paper']}\n\n{spoken(found['text'])}\n")
        show([{**option, "meaning": spoken(option["meaning"])} for option in found["options"]])


def page(cls: type[Method]) -> Page:
    """Return what its class says about a method: docstring, options, defaults, and what each option means."""
    return Page(
        name=cls.name,
        kind=cls.kind,
        paper=cls.paper,
        text=_ARGS.sub("", inspect.cleandoc(cls.__doc__ or "")).strip(),
        options=_options(cls),
    )


def _options(cls: type[Method]) -> list[Option]:
    # a docstring describes the options its class adds; those of the bases are described there
    meanings: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        meanings |= _meanings(inspect.cleandoc(owner.__doc__ or ""))
        if cls.reads_zeros and owner.__dict__.get(
            "reads_zeros"
        ):  # what a class below says of them still counts
            meanings |= dict.fromkeys(_UNUSED, "not used: this method does not choose what is kept.")
    return [
        Option(
            option=field.name,
            type=field.type if isinstance(field.type, str) else inspect.formatannotation(field.type),
            default=_default(field),
            meaning=meanings.get(field.name, ""),
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]


_UNUSED = ("sparsity", "kept", "allocation", "pattern")
"""Options of every method that say what is kept: they play no part where the zeros of the model do."""

_ARGS = re.compile(r"^Args:\n((?: +.*\n?|\n)*)", re.MULTILINE)
"""The section of a docstring that describes the options."""

_ARG = re.compile(r"^ {4}(\w+(?:, \w+)*): *((?:.|\n {5,})*)", re.MULTILINE)
"""One option in it, or some that belong together, and the meaning: as many lines as are indented deeper."""


def _meanings(docstring: str) -> dict[str, str]:
    section = _ARGS.search(docstring)
    described = _ARG.findall(section[1]) if section else []
    return {name: " ".join(text.split()) for names, text in described for name in names.split(", ")}


_REFERENCE = re.compile(r":\w+:`[~.]*([^`]*)`")
"""A cross-reference, which documents turn into a link."""


def spoken(text: str) -> str:
    """A docstring as a terminal shows it: a reference is the name that it refers to."""
    return _REFERENCE.sub(r"\1", text)


def _default(field: dataclasses.Field[object]) -> str | None:
    """Return a field's default as one would write it; None where the user must choose."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return None
