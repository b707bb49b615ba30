"""What holds for every command: exit status, where output goes, and what is not loaded."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import openwork
from openwork import cli

COMMANDS = [name for name in cli.app if not name.startswith("-")]


def run(*tokens: str, code: str = "import sys; from openwork.cli import main; sys.exit(main())"):
    return subprocess.run([sys.executable, "-c", code, *tokens], capture_output=True, text=True, check=False)


@pytest.fixture
def failing():
    """A command `failing` that raises what it is given."""

    def put(error: BaseException) -> None:
        def fail() -> None:
            raise error

        cli.app.command(fail, name="failing")

    yield put
    del cli.app["failing"]


def test_help_loads_no_torch():
    done = run(
        "--help", code="import sys; from openwork.cli import main; main(); print('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert all(name in done.stdout for name in COMMANDS)


def test_no_command_loads_torch_before_it_runs():
    pages = [f"openwork.cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__)]
    assert pages
    code = (
        f"import sys, importlib\nfor p in {pages}: importlib.import_module(p)\nprint('torch' in sys.modules)"
    )
    done = run(code=code)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: openwork {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_means_and_its_default_as_one_types_it(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    assert cli.main([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert "[default: (" not in told
    assert "[default: False]" not in told
    for line in told.splitlines():
        if line.startswith("│ --"):
            described = line.strip("│ ").split("  ", 1)
            assert len(described) == 2, line
            assert not described[1].strip().startswith("["), line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_page_of_its_own(name):
    assert callable(getattr(importlib.import_module(f"openwork.cli.{name}"), name))


def test_no_command_at_all_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "Commands" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == openwork.__version__


@pytest.mark.parametrize("tokens", [["nosuch"], ["methods", "--nosuch"], ["methods", "a", "b"]])
def test_wrong_use_is_status_2_and_silent_on_stdout(tokens, capsys):
    assert cli.main(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "None" not in captured.err


class OwnError(Exception):
    pass


OwnError.__module__ = "openwork.somewhere"


@pytest.mark.parametrize(
    "error", [ValueError("it cannot be"), FileNotFoundError("no file"), OwnError("ours")]
)
def test_an_error_is_a_message_with_hints_and_no_traceback(error, failing, capsys):
    error.add_note("try something else")
    failing(error)
    assert cli.main(["failing"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {error}\nhint: try something else\n"


def test_debug_shows_the_traceback(failing):
    failing(ValueError("deep"))
    with pytest.raises(ValueError, match="deep"):
        cli.main(["failing", "--debug"])


def test_a_mistake_of_ours_keeps_its_traceback(failing):
    failing(KeyError("bug"))
    with pytest.raises(KeyError):
        cli.main(["failing"])


def test_interruption_is_status_130(failing, capsys):
    failing(KeyboardInterrupt())
    assert cli.main(["failing"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_leaves_early_sees_no_traceback():
    code = """
import sys, openwork.cli as cli
from openwork.cli.output import show_json
cli.app.command(lambda: show_json(list(range(100_000))), name="long")
sys.exit(cli.main(["long"]))"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"[\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("command", [["bench"], ["compare"], ["plan", "mlp", "set"]])
def test_percents_are_not_taken_for_fractions(command, capsys):
    assert cli.main([*command, "--sparsity", "95"]) == 1
    assert "got 95.0: for 95 % write 0.95" in capsys.readouterr().err
