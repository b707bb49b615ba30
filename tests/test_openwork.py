"""The public names, and what looking at them costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import openwork

STUB = [
    (node.module, alias.name)
    for node in ast.parse(Path(openwork.__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]
HOME = {name: module for module, name in STUB}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_in_nothing_heavy():
    heavy = {"torch", "numpy", "rich", "cyclopts"}
    assert run(f"import sys, openwork; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("name", openwork.__all__)
def test_every_public_name_is_found_and_documented(name):
    value = getattr(openwork, name)
    assert name in dir(openwork)
    if name != "__version__":
        assert value.__doc__
        assert value is getattr(import_module(f"openwork.{HOME[name]}"), name)


def test_every_name_has_one_home():
    assert len(HOME) == len(STUB) == len(openwork.__all__) - 1


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"openwork.*'NoSuchThing'"):
        openwork.NoSuchThing  # noqa: B018


def test_a_verb_is_not_replaced_by_the_page_of_the_same_name():
    # the import system binds a submodule in its package, whatever was there
    assert (
        run("import openwork, openwork.plan; print(openwork.plan.__name__, callable(openwork.plan))")
        == "plan True"
    )
    assert (
        run("import openwork.plan, openwork; print(callable(openwork.plan), bool(openwork.Plan))")
        == "True True"
    )


def test_the_plan_of_the_house_names_every_room():
    rooms = {path.stem for path in Path(openwork.__file__).parent.iterdir() if path.suffix in ("", ".py")}
    table = (Path(__file__).parents[1] / "docs/architecture.md").read_text("utf-8").split("\n## ")[1]
    assert {room for room in rooms if not room.startswith("_") and f"`{room}`" not in table} == set()
