"""A page for every registered method, made from its docstring, and the ``methods`` directive that lists them.

The pages are written next to ``methods/index.md`` before Sphinx looks for sources; they are not kept in git.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective

from openwork.cli.methods import Option, page
from openwork.method import Method, pages, registry


def write_pages(app: Sphinx) -> None:
    """Write ``methods/<name>.rst`` for every method, and remove the pages of methods that are gone."""
    write(Path(app.srcdir, "methods"), {name: render(cls) for name, cls in registry().items()})


def write(folder: Path, texts: dict[str, str]) -> None:
    """Make the ``.rst`` files of a folder be these, by name. One that has not changed is not built again."""
    for stale in folder.glob("*.rst"):
        if stale.stem not in texts:
            stale.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def render(cls: type[Method]) -> str:
    """Return the page of one method as reStructuredText."""
    found = page(cls)
    heading = f"{cls.__name__}\n{'=' * len(cls.__name__)}"
    about = f"``{found['name']}``, {found['kind']}. {found['paper']}"
    signature = f".. py:class:: {cls.__module__}.{cls.__name__}"
    text = indent(str(GoogleDocstring(found["text"])), "   ")
    return "\n\n".join([heading, about, signature, text, _table(found["options"])]) + "\n"


def _table(options: list[Option]) -> str:
    rows = [("option", "type", "default", "meaning")]
    for option in options:
        default = "" if option["default"] is None else f"``{option['default']}``"
        rows.append((f"``{option['option']}``", f"``{option['type']}``", default, option["meaning"]))
    return _list_table(rows, widths="15 20 15 50")


def _list_table(rows: list[tuple[str, ...]], widths: str) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for first, *others in rows:
        lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(lines)


class Methods(SphinxDirective):
    """All methods in one table, each with a link to its page."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the shelf may have changed though this page has not
        rows = [("method", "kind", "what it does", "paper")]
        rows += [(f":doc:`{name}`", kind, what, paper) for name, kind, what, paper in pages()]
        return self.parse_text_to_nodes(_list_table(rows, widths="12 10 48 30"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_pages)
    app.add_directive("methods", Methods)
    return {"parallel_read_safe": True}
