"""A table and its charts as one HTML file that asks nobody for anything: no server, no network, light and dark.

Without the extra ``report`` the page has its table and says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, TypeAlias

from openwork.compare.contest import Trained
from openwork.compare.machine import Machine
from openwork.compare.table import Row, cells

TITLE = "openwork demo"

Chart: TypeAlias = tuple[str, dict[str, object]]
"""``(title, Vega-Lite specification)``."""

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #1b1b1b; --line: #555; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 76rem; margin: auto; padding: 1.5rem; }
.machine { opacity: 0.75; }
.wide, .chart { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: pre;
vertical-align: top; } th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
summary { cursor: pointer; }
"""


def page(
    rows: Sequence[Row], *, machine: Machine, networks: Mapping[str, Sequence[Trained]], about: str
) -> str:
    """The report of a contest.

    Args:
        rows: of the table.
        machine: where it was measured.
        networks: contestant, in words -> its networks, for the curves of training.
        about: a sentence or two on what was done.

    Returns:
        A whole HTML document.
    """

    def draw() -> list[Chart]:
        from openwork.compare.charts import charts

        return charts(rows, networks)

    return document(TITLE, about=about, machine=machine, records=[cells(row) for row in rows], draw=draw)


def document(
    title: str,
    *,
    about: str,
    machine: Machine,
    records: Sequence[Mapping[str, object]],
    draw: Callable[[], Sequence[Chart]],
) -> str:
    """A whole HTML document: what was done, where, the table, and the charts with their numbers.

    Args:
        title: of the page.
        about: a sentence or two on what was done.
        machine: where it was measured.
        records: of the table, all with the same keys.
        draw: makes the charts; only called if what it takes to show them is installed.
    """
    main = html_table(records)
    try:
        import altair  # noqa: F401  (asked for here so that a missing extra is one message)
        import jinja2
        import vl_convert
        from markupsafe import Markup
    except ImportError as error:
        return _plain(
            title,
            main,
            machine,
            f"{about} There are no charts: {error.name} is missing, pip install 'openwork[report]'.",
        )
    drawn = draw()
    template = jinja2.Environment(autoescape=True).from_string(
        files("openwork.compare").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    # the stub says that a snippet is needed; the library documents that it is not
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return template.render(
        title=title,
        about=about,
        machine=str(machine),
        style=Markup(_STYLE),
        table=Markup(main),
        charts=[{"title": title, "table": Markup(html_table(_values(spec)))} for title, spec in drawn],
        bundle=Markup(bundle),
        specs=Markup(_in_script([spec for _, spec in drawn])),
    )


def html_table(records: Sequence[Mapping[str, object]]) -> str:
    """Records with the same keys as an HTML table, escaped."""
    if not records:
        return "<p>Nothing was measured.</p>"
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in records[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in record.values()) + "</tr>\n"
        for record in records
    )
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _values(spec: Mapping[str, Any]) -> list[Mapping[str, object]]:
    """The numbers a chart draws; of layers on top of each other, those of the first."""
    layers: Sequence[Mapping[str, Any]] = spec.get("layer", [spec])
    values: list[Mapping[str, object]] = spec["datasets"][layers[0]["data"]["name"]]
    return values


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _in_script(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data).replace("<", "\\u003c")


def _plain(title: str, table: str, machine: Machine, about: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><main><h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n"
        f'<p class="machine">{escape(str(machine))}</p>\n{table}\n</main></body></html>\n'
    )
