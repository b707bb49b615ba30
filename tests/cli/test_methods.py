"""The shelf and its pages, on the command line."""

import dataclasses
import importlib
import json

import pytest

from openwork.cli import main
from openwork.cli.methods import page, spoken

method = importlib.import_module("openwork.method")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comb(method.Method):
    """Keep every other tooth.

    The update is::

        keep = t mod 2

    Args:
        teeth: how many there are, counted
            from the left.
        material, finish: of which it is made: horn, wood.

    Raises:
        ValueError: never.
    """

    teeth: int
    material: str = "horn"
    finish: str = "plain"


@pytest.fixture
def shelf(monkeypatch):
    """A shelf with two methods on it: these tests are about the page, not about what is published."""
    monkeypatch.setattr(method, "SHELVES", ())
    monkeypatch.setattr(method, "entry_points", lambda group: ())
    monkeypatch.setattr(method, "_REGISTRY", {})
    method.method(paper="Kamm 1893", kind="prune", name="comb")(Comb)
    method.method(paper="nobody", kind="train", name="another")(
        dataclasses.dataclass(frozen=True, kw_only=True)(
            type("Another", (method.Method,), {"__doc__": "Else."})
        )
    )


@pytest.mark.usefixtures("shelf")
def test_the_list_has_a_line_for_each(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["name", "kind", "what", "paper"]
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["another", "comb"]
    assert "Keep every other tooth." in out


@pytest.mark.usefixtures("shelf")
def test_the_list_for_programs(capsys):
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "comb",
        "kind": "prune",
        "what": "Keep every other tooth.",
        "paper": "Kamm 1893",
    }


@pytest.mark.usefixtures("shelf")
def test_a_page_has_text_and_every_option(capsys):
    assert main(["methods", "comb"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("comb (prune)\nKamm 1893\n\nKeep every other tooth.\n")
    assert "    keep = t mod 2" in out
    for field in dataclasses.fields(Comb):
        assert f"\n{field.name} " in out


@pytest.mark.usefixtures("shelf")
def test_options_carry_defaults_and_meanings_of_the_class_and_its_bases(capsys):
    assert main(["methods", "comb", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == page(Comb)
    options = {option["option"]: option for option in found["options"]}
    assert list(options) == [field.name for field in dataclasses.fields(Comb)]
    assert options["teeth"] == {
        "option": "teeth",
        "type": "int",
        "default": None,
        "meaning": "how many there are, counted from the left.",
    }
    assert options["material"]["default"] == "'horn'"
    assert options["material"]["meaning"] == "of which it is made: horn, wood."
    assert options["finish"]["meaning"] == options["material"]["meaning"]
    assert options["sparsity"]["meaning"].startswith("fraction of zeros")


@pytest.mark.usefixtures("shelf")
def test_the_text_leaves_the_options_to_their_table():
    text = page(Comb)["text"]
    assert "teeth" not in text
    assert text.endswith("Raises:\n    ValueError: never.")


@pytest.mark.usefixtures("shelf")
def test_a_typo_is_wrong_use_and_the_nearest_name_is_offered(capsys):
    assert main(["methods", "cmob"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cmob" in captured.err
    assert "did you mean comb" in captured.err.replace("\n", " ")


@pytest.mark.parametrize("cls", method.registry().values(), ids=lambda cls: cls.name)
def test_every_published_method_explains_itself(cls):
    found = page(cls)
    assert found["text"]
    assert found["paper"]
    unexplained = [option["option"] for option in found["options"] if not option["meaning"]]
    assert not unexplained


def test_a_terminal_shows_the_name_that_a_reference_refers_to():
    assert (
        spoken("as :class:`DNW`, see :func:`~openwork.attach` and ``code``")
        == "as DNW, see openwork.attach and ``code``"
    )


def test_options_without_a_part_to_play_are_not_used_unless_the_method_says_so():
    def told(name):
        return {option["option"]: option["meaning"] for option in page(method.get(name))["options"]}

    for name in ("refit", "monarch", "keep_zeros"):
        assert all(
            told(name)[o].startswith("not used") for o in ("sparsity", "kept", "allocation", "pattern")
        )
    assert told("permute_channels")["pattern"].startswith("n:m")
    assert told("sparse_ift")["sparsity"].startswith("of the new layers")
    for name in ("gqsa", "rigl", "wanda"):  # a choice on a base that does not choose, and choices
        assert told(name)["sparsity"].startswith("fraction of zeros")
