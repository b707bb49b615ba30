"""Packages that openwork can do without: asked for where they are needed, with one message where they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class MissingExtra(ImportError):
    """A package that this task needs is not installed."""


def require(module: str, *, extra: str, to: str) -> ModuleType:
    """Import a package that only some tasks need.

    Args:
        module: what to import, such as ``"transformers"``.
        extra: the optional dependencies of openwork that bring it, such as ``"hf"``.
        to: what it is needed for, as the message says it: ``"read a Hugging Face folder"``.

    Raises:
        MissingExtra: it is not installed. A package that is there and fails for another reason raises its own error.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        message = f"to {to}, {package} is needed, and it is not installed: pip install 'openwork[{extra}]'"
        raise MissingExtra(message, name=package) from error
