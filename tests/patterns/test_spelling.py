"""Patterns as people write them, and those that nobody can."""

import pytest

from openwork.patterns import NM, Block, FanIn, pattern
from tests.patterns.test_contract import PATTERNS


@pytest.mark.parametrize("p", PATTERNS, ids=str)
def test_spelling_and_value_are_the_same(p):
    assert pattern(str(p)) == p
    assert pattern(p) is p


def test_spellings():
    assert pattern(" Block 4x1 ") == Block(4, 1)
    assert pattern("fan_in:8") == FanIn(8)


@pytest.mark.parametrize("spelling", ["", "2;4", "block 4", "groups", "n:m", "2:4:8"])
def test_unknown_spellings_are_refused(spelling):
    with pytest.raises(ValueError, match="unknown pattern"):
        pattern(spelling)


@pytest.mark.parametrize("make", [lambda: NM(3, 2), lambda: NM(-1, 2), lambda: NM(0, 0), lambda: Block(0, 1)])
def test_impossible_patterns_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()
