"""Tables as plain text."""

import pytest

from openwork.tables import table


def test_words_begin_and_numbers_end_at_the_same_place():
    lines = table(("name", "kept", "why"), [("a", "7", ""), ("longer", "12345", "erk")], {"kept"})
    assert lines == ["name     kept  why", "a           7", "longer  12345  erk"]


def test_a_table_may_have_a_header_only():
    assert table(("name", "kept"), []) == ["name  kept"]


def test_every_row_has_a_cell_for_each_column():
    with pytest.raises(ValueError, match="shorter"):
        table(("name", "kept"), [("a",)])
