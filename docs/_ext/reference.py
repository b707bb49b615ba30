"""A page for every module with public names, made from the table in ``openwork/__init__.py``.

Like the pages of the methods, they are written before Sphinx looks for sources, and not kept in git.
"""

from pathlib import Path

from methods import write
from sphinx.application import Sphinx

import openwork
from openwork.method import SHELVES


def write_pages(app: Sphinx) -> None:
    """Write ``reference/<module>.rst`` for every module that has public names."""
    texts = {
        module: render(module, names)
        for module, names in openwork._PUBLIC.items()
        if f"openwork.{module}".rpartition(".")[0] not in SHELVES  # the methods have pages of their own
    }
    write(Path(app.srcdir, "reference"), texts)


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
