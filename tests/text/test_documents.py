"""Texts from files, and what is said where there are none."""

import json
import sys
import types

import pytest

from openwork.extras import MissingExtra
from openwork.text import documents


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo ü", encoding="utf-8")
    assert list(documents(tmp_path / "a.txt")) == ["one\n\ntwo ü"]


def test_a_line_of_jsonl_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "  "}\n{"id": 3, "text": "two"}\n')
    assert list(documents(path)) == ["one", "two"]
    path.write_text('{"body": "one"}\n')
    assert list(documents(path, field="body")) == ["one"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 3}', "line 2: no text under 'text'; it has text"),
        ('{"body": "x"}', "it has body"),
        ("[1]", "it is no record at all"),
        ("{", "line 2: not a JSON object"),
        ("[" * 100_000, "line 2: not a JSON object"),
        ("9" * 5000, "line 2: not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2") as raised:
        list(documents(tmp_path / "a.jsonl"))
    assert said in str(raised.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine \xff")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.txt: not a text in UTF-8"):
        list(documents(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        list(documents(tmp_path / "a.jsonl"))


def test_no_text_at_all(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no text"):
        list(documents(tmp_path / "a.txt"))


def test_what_is_neither_a_file_nor_a_data_set():
    with pytest.raises(ValueError, match=r"allenai/c4:en\[train\]"):
        list(documents("notes.pdf"))
    with pytest.raises(FileNotFoundError):
        list(documents("nosuch.txt"))


def test_the_hub_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"allenai/c4 of the hub.*openwork\[eval\]"):
        list(documents("allenai/c4"))


def test_the_hub_is_streamed_by_name_configuration_and_part(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(documents("allenai/c4:en[validation]")) == ["one", "two"]
    assert next(documents("owner/name")) == "one"
    assert json.loads(json.dumps(asked)) == [
        [["allenai/c4", "en"], {"split": "validation", "streaming": True}],
        [["owner/name", None], {"split": "train", "streaming": True}],
    ]
