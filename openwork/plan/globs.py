"""Which parameters the globs of a method name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from openwork.method import Method


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether any of the globs names the parameter."""
    return any(fnmatchcase(name, glob) for glob in globs)


def override(method: Method, name: str) -> float | None:
    """The sparsity that a method sets for one parameter. The last match wins, as in a list of rules."""
    found = None
    for glob, sparsity in method.overrides.items():
        if fnmatchcase(name, glob):
            found = sparsity
    return found


def require_several(option: str, globs: object) -> None:
    """Raise ValueError if the globs of an option are one string: its letters would be taken for globs."""
    if isinstance(globs, str):
        raise ValueError(
            f"{option} is a tuple of globs, got the string {globs!r}: write {option}=({globs!r},)"
        )


def must_match(method: Method, names: list[str]) -> None:
    """Raise ValueError unless every glob of the method names a parameter."""
    for option in ("include", "exclude", "overrides"):
        globs = getattr(method, option)
        require_several(option, globs)
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                near = difflib.get_close_matches(glob, names, n=3, cutoff=0.0)
                raise ValueError(
                    f"{option}: {glob!r} matches no parameter that could be sparse; the nearest names are "
                    f"{', '.join(near) or 'none'}"
                )
