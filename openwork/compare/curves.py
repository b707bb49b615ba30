"""The measurements of :mod:`openwork.compare.breakeven` as a table and as curves: where does sparse begin to win?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from openwork.compare.breakeven import BreakEven, Measured, break_even, fastest
from openwork.compare.machine import machine
from openwork.compare.report import Chart, document
from openwork.compare.roofline import Roof

if TYPE_CHECKING:
    import altair

WIDTH, HEIGHT = 560, 300


def cells(row: Measured) -> dict[str, str]:
    """A row of the table."""
    return {
        "layer": f"{row.shape[0]}x{row.shape[1]}",
        "batch": str(row.batch),
        "sparsity": f"{row.sparsity:.3f}",
        "layout": row.layout,
        "ms": f"{row.ms:.4f}",
        "quartiles": f"{row.low_ms:.4f}..{row.high_ms:.4f}",
        "best dense": row.dense,
        "dense ms": f"{row.dense_ms:.4f}",
        "ratio": f"{row.ratio:.2f}x",
        "GFLOP/s": f"{row.gflops:.1f}",
        "of peak": "" if row.of_peak is None else f"{100 * row.of_peak:.0f} %",
        "of reads": "" if row.of_reads is None else f"{100 * row.of_reads:.0f} %",
    }


def told(point: BreakEven) -> str:
    """A break-even in words."""
    layer = f"{point.shape[0]}x{point.shape[1]} at batch {point.batch}"
    if point.sparsity is None:
        return f"{layer}: dense wins at every sparsity measured"
    return f"{layer}: sparse wins from a sparsity of {point.sparsity:.2f} on ({point.layout})"


def limits(roof: Roof) -> str:
    """The limits of the machine in words."""
    reads = ", ".join(f"{rate:.0f} GB/s from {_size(size)}" for size, rate in sorted(roof.reads.items()))
    threads = f"{roof.threads} threads" + (
        f", {roof.handover * 1e9:.0f} ns from one to another" if roof.handover else ""
    )
    return f"this machine reaches {roof.gflops:.0f} GFLOP/s and reads {reads} ({threads})"


def page(rows: Sequence[Measured], roof: Roof | None = None) -> str:
    """The break-even page: one curve for each layer and size of batch. A whole HTML document."""
    wins = ". ".join(told(point) for point in break_even(rows))
    about = (
        f"Random {rows[0].pattern if rows else ''} masks, float32, the same weights again and again (hot); all layouts against "
        f"all dense kernels, taking turns, medians. {wins}. Measured {datetime.now(UTC).isoformat(timespec='minutes')}. "
        "A ratio is against the fastest dense kernel of the same contest. "
    )
    if roof is not None:
        about += (
            f"In the same run {limits(roof)}: the last columns are useful operations as a share of the first, and bytes of "
            "weights as a share of the rate a buffer of that size is read at."
        )
    records = [cells(row) for row in fastest(rows)]
    return document(
        "openwork bench", about=about, machine=machine(), records=records, draw=lambda: charts(rows)
    )


def charts(rows: Sequence[Measured]) -> list[Chart]:
    """A chart for each layer, and one for all of the shares of the roof they reach."""
    shapes = dict.fromkeys(row.shape for row in rows)
    best = fastest(rows, sparse=True)
    drawn = [
        (
            f"{outputs}x{inputs}: times as fast as the best dense kernel",
            ratios([row for row in best if row.shape == (outputs, inputs)]).to_dict(),
        )
        for outputs, inputs in shapes
    ]
    with_roof = [row for row in best if row.of_peak is not None]
    return [
        *drawn,
        *([("Share of the limits of this machine", shares(with_roof).to_dict())] if with_roof else []),
    ]


def ratios(rows: Sequence[Measured]) -> altair.LayerChart | altair.FacetChart:
    """The ratio to dense over sparsity, a curve for each size of batch; the line at 1 is dense."""
    import altair as alt

    values = [
        {
            "batch": row.batch,
            "sparsity": row.sparsity,
            "ratio": row.ratio,
            "layout": row.layout,
            "ms": row.ms,
            "best dense": row.dense,
            "dense ms": row.dense_ms,
        }
        for row in rows
    ]
    curve = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point=True)
        .encode(
            x=alt.X("sparsity:Q", title="sparsity", scale=alt.Scale(zero=False)),
            y=alt.Y("ratio:Q", title="times as fast as dense", scale=alt.Scale(type="log")),
            color=alt.Color("batch:O", title="batch", scale=alt.Scale(scheme="viridis")),
            tooltip=[
                alt.Tooltip("batch:O"),
                alt.Tooltip("sparsity:Q", format=".3f"),
                alt.Tooltip("ratio:Q", format=".2f"),
                alt.Tooltip("layout:N"),
                alt.Tooltip("ms:Q", format=".4f"),
                alt.Tooltip("best dense:N"),
                alt.Tooltip("dense ms:Q", format=".4f"),
            ],
        )
    )
    line = alt.Chart(alt.InlineData(values=[{"dense": 1}])).mark_rule(strokeDash=[4, 4], color="gray")
    return alt.layer(curve, line.encode(y="dense:Q")).properties(width=WIDTH, height=HEIGHT)


def shares(rows: Sequence[Measured]) -> altair.Chart:
    """How near each layer comes to one limit, and to the other."""
    import altair as alt

    values = [
        {
            "layer": f"{row.shape[0]}x{row.shape[1]}",
            "batch": row.batch,
            "sparsity": row.sparsity,
            "layout": row.layout,
            "of multiply-adds, %": 100 * row.of_peak,
            "of reads, %": 100 * row.of_reads,
        }
        for row in rows
        if row.of_peak is not None and row.of_reads is not None
    ]
    chart: altair.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X("of reads, %:Q"),
            y=alt.Y("of multiply-adds, %:Q"),
            color=alt.Color("batch:O", title="batch", scale=alt.Scale(scheme="viridis")),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("batch:O"),
                alt.Tooltip("sparsity:Q", format=".3f"),
                alt.Tooltip("layout:N"),
                alt.Tooltip("of multiply-adds, %:Q", format=".0f"),
                alt.Tooltip("of reads, %:Q", format=".0f"),
            ],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return chart


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MB" if nbytes >= 1 << 20 else f"{nbytes >> 10} kB"
