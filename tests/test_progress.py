"""Bars: on a terminal, after a while, and never in the way of the data."""

import io
import re
import time
from contextlib import redirect_stderr

import pytest

from openwork import progress
from openwork.progress import phase, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.text():
            assert time.monotonic() < deadline, f"no {text!r} in {self.text()!r}"
            time.sleep(0.01)


def on_terminal() -> redirect_stderr[Terminal]:
    return redirect_stderr(Terminal())


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.02)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("OPENWORK_PROGRESS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_track_yields_what_it_is_given():
    with on_terminal():
        assert list(track("sparse", "spelling")) == list("sparse")
        assert list(track(iter(range(3)), "counting")) == [0, 1, 2]


def test_long_work_is_shown_with_its_phase_and_count():
    with on_terminal() as terminal, phase("solving block 3 of 12", total=7) as current:
        current.advance(5)
        terminal.wait_for("solving block 3 of 12")
        terminal.wait_for("5/7")
        current.describe("propagating block 3 of 12")
        current.advance()
        terminal.wait_for("propagating block 3 of 12")
        terminal.wait_for("6/7")


def test_nested_phases_are_lines_of_one_display():
    with on_terminal() as terminal:
        with phase("blocks", total=2) as blocks:
            terminal.wait_for("blocks")
            for _ in track([1, 2, 3], "layers"):
                terminal.wait_for("layers")
            blocks.advance()
            terminal.wait_for("1/2")
        assert progress._terminal._bars is None


def test_short_work_shows_nothing_and_loads_nothing(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    monkeypatch.setattr(progress, "_bars", lambda: pytest.fail("shown too early"))
    with on_terminal() as terminal:
        assert list(track(range(100), "quick")) == list(range(100))
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("name", "value"), [("OPENWORK_PROGRESS", "0"), ("TERM", "dumb")])
def test_silence_can_be_asked_for(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with on_terminal() as terminal, phase("unseen"):
        time.sleep(0.2)
    assert terminal.getvalue() == ""


def test_a_pipe_sees_nothing():
    with redirect_stderr(io.StringIO()) as pipe, phase("unseen"):
        time.sleep(0.2)
    assert pipe.getvalue() == ""


@pytest.mark.parametrize("color", [False, True])
def test_no_color_is_respected(monkeypatch, color):
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    with on_terminal() as terminal, phase("drawn", total=3):
        terminal.wait_for("drawn")
    assert bool(re.search(r"\x1b\[[0-9;]+m", terminal.getvalue())) is color


def test_data_printed_meanwhile_stays_on_stdout(capsys):
    with on_terminal() as terminal, phase("working"):
        terminal.wait_for("working")
        print("data")
    assert capsys.readouterr().out == "data\n"
    assert "data" not in terminal.text()


def test_the_display_ends_with_an_error_inside():
    with on_terminal() as terminal:
        with pytest.raises(ZeroDivisionError), phase("failing"):  # noqa: PT012
            terminal.wait_for("failing")
            raise ZeroDivisionError
        assert progress._terminal._bars is None
    shown, _, after = terminal.getvalue().rpartition("\x1b[?25h")
    assert "failing" in shown  # the cursor is back
    assert after.strip() == ""


def test_a_bar_that_comes_too_late_does_not_stay():
    with on_terminal() as terminal:
        with phase("over") as current:
            pass
        progress._terminal.show(current)  # the timer had already fired
    assert terminal.getvalue() == ""
