"""The public names, and what looking at them costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import openwork


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
        assert value is getattr(import_module(f"openwork.{openwork._HOME[name]}"), name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(openwork.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    spelled = {(alias.asname, node.module) for node in imports for alias in node.names}
    assert spelled == {(name, f"openwork.{module}") for name, module in openwork._HOME.items()}


def test_no_name_has_two_homes():
    names = [name for found in openwork._PUBLIC.values() for name in found]
    assert len(names) == len(set(names))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"openwork.*'NoSuchThing'"):
        openwork.NoSuchThing  # noqa: B018


def test_a_verb_is_not_replaced_by_the_page_of_the_same_name():
    # the import system binds a submodule in its package, whatever was there
    assert (
        run("""
import sys, types, openwork
openwork._HOME["verb"] = "verb"
page = types.ModuleType("openwork.verb")
page.verb = lambda: "done"
sys.modules["openwork.verb"] = page
openwork.verb = page
import openwork.verb
print(openwork.verb())""")
        == "done"
    )
