"""Patterns as people write them."""

from __future__ import annotations

import re

from openwork.patterns.block import Block
from openwork.patterns.contract import Pattern
from openwork.patterns.fan_in import FanIn
from openwork.patterns.gates import Gates
from openwork.patterns.groups import Groups
from openwork.patterns.nm import NM, AnyNM
from openwork.patterns.unstructured import Unstructured

_SPELLINGS: tuple[tuple[str, type[Pattern]], ...] = (
    (r"unstructured", Unstructured),
    (r"(\d+):(\d+)", NM),
    (r"n:(\d+)", AnyNM),
    (r"block[ :]?(\d+)x(\d+)", Block),
    (r"fan[-_]in(?:[ :](\d+))?", FanIn),
    (r"groups[ :](\d+)", Groups),
    (r"gates[ :](\d+)", Gates),
)


def pattern(spelling: str | Pattern) -> Pattern:
    """Read a pattern from its spelling: ``"unstructured"``, ``"2:4"``, ``"n:8"``, ``"block 4x1"``, ``"fan-in"``, ``"fan-in 32"``,
    ``"groups 0"``, ``"gates 4"``. A pattern is returned as it is, so ``pattern(str(p)) == p`` for every pattern.
    """
    if isinstance(spelling, Pattern):
        return spelling
    for form, cls in _SPELLINGS:
        if match := re.fullmatch(form, spelling.strip().lower()):
            return cls(*(int(number) for number in match.groups() if number is not None))
    raise ValueError(
        f"unknown pattern {spelling!r}: write unstructured, 2:4 (keep 2 of every 4 inputs), n:8 (n as the sparsity says), "
        "block 4x1 (4 outputs x 1 input), "
        "fan-in, fan-in 32, groups 0, or gates 4 (the same mask for every gate of an LSTM)"
    )
