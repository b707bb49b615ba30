"""Tables and JSON from the same records."""

import json
import subprocess
import sys

from openwork.cli.output import complaint, say, show, show_json

RECORDS = [
    {"name": "fc1.weight", "shape": "[300, 784]", "kept": 23520, "why": None},
    {"name": "fc2.weight", "shape": "[bold]10[/bold]", "kept": 5, "why": "a reason " * 30 + "to the end"},
]


def test_a_pipe_gets_whole_lines(capsys):
    show(RECORDS)
    header, _, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "shape", "kept", "why"]
    assert first.split() == ["fc1.weight", "[300,", "784]", "23520"]
    assert second.rstrip().endswith("to the end")


def test_cells_are_not_markup(capsys):
    show(RECORDS)
    assert "[bold]10[/bold]" in capsys.readouterr().out


def test_json_is_one_value_with_the_same_data(capsys):
    show(RECORDS, as_json=True)
    assert json.loads(capsys.readouterr().out) == RECORDS


def test_nothing_is_an_empty_array_for_programs_and_no_line_for_people(capsys):
    show([])
    assert capsys.readouterr().out == ""
    show([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_what_json_has_no_word_for_is_written_out(capsys):
    show_json({"path": __import__("pathlib").Path("a/b")})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b"}


def test_talk_goes_to_stderr(capsys):
    say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_notes_of_an_error_are_hints():
    error = ValueError("no")
    error.add_note("try yes")
    error.add_note("or maybe")
    assert complaint(error) == "error: no\nhint: try yes\nhint: or maybe"


def test_table_without_colour_when_asked():
    code = f"from openwork.cli.output import show; show({RECORDS!r})"
    env = {"NO_COLOR": "1", "FORCE_COLOR": "", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert "\x1b[" not in done.stdout
