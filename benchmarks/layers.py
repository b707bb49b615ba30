"""The figure on the landing page: one layer, every sparsity and size of batch, against the best dense kernel.

Measures unstructured masks and row blocks with `openwork.compare.breakeven` (all layouts against all dense kernels, taking
turns, medians and quartiles), writes a dated result file that names the machine, and draws the bar chart from that file.

    python benchmarks/layers.py [--layer 1024x1024] [--seconds 0.6] [--draw-only RESULT.json]
"""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from openwork.compare.breakeven import Measured, measure
from openwork.compare.machine import machine
from openwork.layouts.dense import Dense
from openwork.layouts.layout import layouts

HERE = Path(__file__).parent
CHART = HERE.parent / "docs" / "_static" / "layers.svg"
BATCHES = (1, 8, 64, 256)
PATTERNS = {"unstructured": (0.5, 0.75, 0.9, 0.95, 0.99), "block 4x1": (0.5, 0.75, 0.9, 0.95)}


def fastest(rows: list[Measured]) -> list[dict[str, object]]:
    """The fastest sparse layout of each case, beside the fastest dense kernel of the same contest."""
    dense = {cls.name for cls in layouts() if issubclass(cls, Dense)}
    best: dict[tuple[object, ...], Measured] = {}
    for row in rows:
        case = (row.pattern, row.batch, round(row.sparsity, 2))
        if row.layout not in dense and (case not in best or row.ms < best[case].ms):
            best[case] = row
    return [{**asdict(row), "ratio": row.ratio} for row in best.values()]


def draw(result: dict[str, object], to: Path) -> None:
    """Bars of the ratio to the best dense kernel; the line at 1 is dense."""
    import altair as alt

    values = [
        {
            "sparsity": f"{100 * row['sparsity']:.0f} %",
            "ratio": row["ratio"],
            "batch": f"batch {row['batch']}",
            "pattern": row["pattern"],
        }
        for row in result["fastest"]
    ]
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=alt.X("sparsity:N", title=None, sort=None),
            y=alt.Y("ratio:Q", title="times as fast as the best dense kernel"),
            color=alt.Color("pattern:N", title=None, scale=alt.Scale(range=["#b4652f", "#33658a"])),
            xOffset=alt.XOffset("pattern:N", sort=None),
        )
    )
    line = alt.Chart().mark_rule(strokeDash=[4, 3]).encode(y=alt.datum(1))
    text = (
        alt.Chart()
        .mark_text(dy=-5, fontSize=9)
        .encode(
            x=alt.X("sparsity:N", sort=None),
            y="ratio:Q",
            text=alt.Text("ratio:Q", format=".1f"),
            xOffset=alt.XOffset("pattern:N", sort=None),
        )
    )
    sizes = [f"batch {batch}" for batch in BATCHES]
    chart = (
        alt.layer(bars, line, text, data=alt.Data(values=values))
        .properties(width=190, height=200)
        .facet(alt.Column("batch:N", title=None, sort=sizes))
        .properties(
            title=f"A float32 layer of {result['layer']}, {result['machine']['cpu']}, {result['machine']['threads']} threads"
        )
        .configure(background="white")
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    chart.save(to)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--layer", default="1024x1024")
    options.add_argument("--seconds", type=float, default=0.6)
    options.add_argument("--draw-only", type=Path)
    given = options.parse_args()
    if given.draw_only:
        draw(json.loads(given.draw_only.read_text()), CHART)
        return
    outputs, inputs = map(int, given.layer.split("x"))
    rows = [
        row
        for pattern, sparsities in PATTERNS.items()
        for row in measure([(outputs, inputs)], BATCHES, sparsities, spelling=pattern, seconds=given.seconds)
    ]
    here = machine()
    date = datetime.now(UTC).date().isoformat()
    result = {
        "claim": "a sparse layer is faster than the best dense kernel",
        "date": date,
        "layer": given.layer,
        "machine": asdict(here),
        "fastest": fastest(rows),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    path = HERE / "results" / f"{date}-layers.json"
    path.write_text(json.dumps(result, indent=1))
    draw(result, CHART)
    print(here)
    for row in result["fastest"]:
        print(
            f"{row['pattern']:13} batch {row['batch']:4} sparsity {row['sparsity']:.2f}  {row['layout']:14} {row['ms']:.4f} ms  "
            f"{row['dense']} {row['dense_ms']:.4f} ms  {row['ratio']:.2f}x"
        )
    print(f"written: {path}, {CHART}")


if __name__ == "__main__":
    main()
