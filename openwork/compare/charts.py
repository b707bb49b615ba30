"""The table as charts: Vega-Lite specifications, made by Altair. What is drawn is also in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from openwork.compare.contest import Trained
from openwork.compare.record import curve
from openwork.compare.table import Row

if TYPE_CHECKING:
    import altair

WIDTH, HEIGHT = 560, 260


def charts(
    rows: Sequence[Row], networks: Mapping[str, Sequence[Trained]]
) -> list[tuple[str, dict[str, object]]]:
    """``(title, specification)`` of every chart.

    Raises:
        ImportError: Altair is not installed.
    """
    return [
        ("Accuracy on the test part", accuracy(rows).to_dict()),
        ("Speed against the fastest dense kernels", speed(rows).to_dict()),
        ("Memory and disk", size(rows).to_dict()),
        ("Loss while training", loss(networks).to_dict()),
    ]


def accuracy(rows: Sequence[Row]) -> altair.LayerChart | altair.FacetChart:
    """Mean over seeds as a point, every seed as a tick."""
    import altair as alt

    points = [
        {"network": _name(row), "method": row.method, "accuracy": 100 * row.accuracy_mean} for row in rows
    ]
    ticks = [
        {"network": _name(row), "method": row.method, "accuracy": 100 * value}
        for row in rows
        for value in row.accuracies
    ]
    order = [_name(row) for row in rows]
    x = alt.X("accuracy:Q", title="accuracy, %", scale=alt.Scale(zero=False, padding=10))
    y = alt.Y("network:N", sort=order, title=None)
    color = alt.Color("method:N", legend=None)
    told = [alt.Tooltip("network:N"), alt.Tooltip("accuracy:Q", format=".2f")]
    one = alt.Chart(_data(ticks)).mark_tick(opacity=0.6).encode(x=x, y=y, color=color, tooltip=told)
    mean = alt.Chart(_data(points)).mark_point(filled=True, size=80)
    return alt.layer(one, mean.encode(x=x, y=y, color=color, tooltip=told)).properties(width=WIDTH)


def speed(rows: Sequence[Row]) -> altair.LayerChart | altair.FacetChart:
    """How many times as fast as dense, by batch; the line at 1 is dense."""
    import altair as alt

    values = [
        {
            "network": _name(row),
            "batch": batch,
            "ratio": found.ratio,
            "ms": found.packed,
            "dense ms": found.dense,
        }
        for row in rows
        for batch, found in row.latency_ms.items()
    ]
    names = [_name(row) for row in rows]
    bars = (
        alt.Chart(_data(values))
        .mark_bar()
        .encode(
            x=alt.X("batch:O", title="batch", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("network:N", sort=names),
            y=alt.Y("ratio:Q", title="times as fast as dense"),
            color=alt.Color("network:N", sort=names, title=None, scale=alt.Scale(scheme="tableau20")),
            tooltip=[
                alt.Tooltip("network:N"),
                alt.Tooltip("batch:O"),
                alt.Tooltip("ratio:Q", format=".2f"),
                alt.Tooltip("ms:Q", format=".3f"),
                alt.Tooltip("dense ms:Q", format=".3f"),
            ],
        )
    )
    line = alt.Chart(_data([{"dense": 1}])).mark_rule(strokeDash=[4, 4], color="gray").encode(y="dense:Q")
    return alt.layer(bars, line).properties(width=WIDTH, height=HEIGHT)


def size(rows: Sequence[Row]) -> altair.Chart:
    """Bytes of the file, of the weights in memory, and of everything held while training."""
    import altair as alt

    kinds = ("file", "weights in memory", "training state")
    values = [
        {"network": _name(row), "what": kind, "kB": count / 1000}
        for row in rows
        for kind, count in zip(
            kinds, (row.file_bytes, row.parameter_bytes, row.train_state_bytes), strict=True
        )
    ]
    chart: altair.Chart = (
        alt.Chart(_data(values))
        .mark_bar()
        .encode(
            x=alt.X("kB:Q", title="kB"),
            y=alt.Y("network:N", sort=[_name(row) for row in rows], title=None),
            yOffset=alt.YOffset("what:N", sort=list(kinds)),
            color=alt.Color("what:N", sort=list(kinds), title=None),
            tooltip=[alt.Tooltip("network:N"), alt.Tooltip("what:N"), alt.Tooltip("kB:Q", format=",.0f")],
        )
        .properties(width=WIDTH)
    )
    return chart


def loss(networks: Mapping[str, Sequence[Trained]]) -> altair.Chart:
    """Training loss of the first seed of every network that was trained."""
    import altair as alt

    values = [
        {"network": name, "step": step, "loss": value}
        for name, trained in networks.items()
        if not trained[0].contestant.prunes
        for step, value in curve(trained[0])
    ]
    chart: altair.Chart = (
        alt.Chart(_data(values))
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", title="loss, nats", scale=alt.Scale(type="log")),
            color=alt.Color(
                "network:N", sort=list(networks), title=None, scale=alt.Scale(scheme="tableau20")
            ),
            tooltip=[alt.Tooltip("network:N"), alt.Tooltip("step:Q"), alt.Tooltip("loss:Q", format=".4f")],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return chart


def _name(row: Row) -> str:
    return f"{row.method} {100 * row.sparsity_asked:g} %" if row.sparsity_asked else row.method


def _data(values: Sequence[Mapping[str, object]]) -> altair.InlineData:
    import altair as alt

    return alt.InlineData(values=list(values))
