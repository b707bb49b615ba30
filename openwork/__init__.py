"""Openwork: neural networks with most connections cut away, that still hold.

Its names are in ``__init__.pyi``. Importing this page costs nothing: a name is looked up, and torch imported, when it is first
used.
"""

import sys
from types import ModuleType

import lazy_loader

_look_up, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]  # noqa: PLE0604  (all of them are strings)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'openwork' has no attribute {name!r}", name=name, obj=_this)
    value = globals()[name] = _version() if name == "__version__" else _look_up(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("openwork")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0+uninstalled"


class _VerbsFirst(ModuleType):
    """Keeps ``openwork.plan`` the verb: importing the page of that name would put the page in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _names and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


_this = sys.modules[__name__]
_this.__class__ = _VerbsFirst
