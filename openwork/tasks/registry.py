"""The tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from openwork.tasks.cifar10 import cifar10
from openwork.tasks.digits import digits
from openwork.tasks.mnist import fashion_mnist, mnist
from openwork.tasks.task import Task
from openwork.tasks.tiny_shakespeare import tiny_shakespeare
from openwork.tasks.wikitext2 import wikitext2

_FROM_FILES: Mapping[str, Callable[[bool], Task]] = {
    "mnist": lambda download: mnist(download=download),
    "fashion_mnist": lambda download: fashion_mnist(download=download),
    "cifar10": lambda download: cifar10(download=download),
    "tiny_shakespeare": lambda download: tiny_shakespeare(download=download),
    "wikitext2": lambda download: wikitext2(download=download),
}


def names() -> list[str]:
    """The tasks there are."""
    return ["digits", *_FROM_FILES]


def get(name: str, *, download: bool = False) -> Task:
    """Read a task.

    Args:
        name: one of :func:`names`.
        download: fetch its files from their official place if they are not on this machine.

    Raises:
        ValueError: no task is called so.
        MissingData: the files are not here and ``download`` is False; says where to put them.
        ImportError: the digits need scikit-learn.
    """
    key = name.strip().lower().replace("-", "_")
    if key == "digits":
        return digits()
    if key in _FROM_FILES:
        return _FROM_FILES[key](download)
    near = difflib.get_close_matches(key, names(), n=1)
    error = ValueError(f"no task is called {name!r}; there are {', '.join(names())}")
    if near:
        error.add_note(f"did you mean {near[0]}?")
    raise error
