"""A page for every module with public names, made from ``openwork/__init__.pyi``.

Like the pages of the methods, they are written before Sphinx looks for sources, and not kept in git.
"""

import ast
from pathlib import Path

from methods import write
from sphinx.application import Sphinx

import openwork
from openwork.method import SHELVES


def write_pages(app: Sphinx) -> None:
    """Write ``reference/<module>.rst`` for every module that has public names."""
    texts = {
        module: render(module, names)
        for module, names in public().items()
        if f"openwork.{module}".rpartition(".")[0] not in SHELVES  # the methods have pages of their own
    }
    write(Path(app.srcdir, "reference"), texts)


def public() -> dict[str, list[str]]:
    """Return the public names of every module."""
    stub = ast.parse(Path(openwork.__file__).with_suffix(".pyi").read_text("utf-8"))
    found: dict[str, list[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module, []).extend(alias.name for alias in node.names)
    return found


def render(module: str, names: list[str]) -> str:
    """Return the page of one module as reStructuredText: its docstring, then its public names."""
    return f"""\
{module}
{"=" * len(module)}

.. automodule:: openwork.{module}
   :members: {", ".join(names)}
"""


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
