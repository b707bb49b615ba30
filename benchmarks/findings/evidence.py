"""What the findings share: one small training run, and a result with its figure.

Results go to ``benchmarks/results`` with the date and the machine, figures to ``docs/_static/findings``.
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev

import torch

import openwork as ow
from openwork.compare.machine import machine
from openwork.tasks import Task, get
from openwork.tasks.mlp import mlp
from openwork.tasks.task import fewer
from openwork.tasks.training import Metrics, evaluate, fit

ROOT = Path(__file__).parents[2]
SEEDS = range(3)


def clothes(examples: int = 5000) -> Task:
    """A part of Fashion-MNIST; the whole test set."""
    return fewer(get("fashion_mnist"), examples)


def trained(task, sizes, method, *, steps, seed, batch_size=64, learning_rate=0.1):
    """One run: SGD with momentum, learning rate falling to zero. Returns model, sparsifier and metrics on the test part."""
    model = mlp(sizes, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)
    sparsifier = None if method is None else ow.attach(model, optimizer, method)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(model, task, optimizer=optimizer, scheduler=schedule, steps=steps, batch_size=batch_size, seed=seed)
    metrics: Metrics = evaluate(model, task.test)
    return model, sparsifier, metrics


def summary(values):
    """``(mean, spread)`` over seeds."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def publish(name, setting, rows, *, x, y, color, log_x=False, title=""):
    """Write the result and its figure: a line a colour, with its spread where rows have one (``<y>_std``)."""
    result = {"finding": name, "setting": setting, "machine": asdict(machine()), "rows": rows}
    date = datetime.now(UTC).date().isoformat()
    path = ROOT / "benchmarks" / "results" / f"{date}-finding-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
            )
        )
    draw(name, rows, x, y, color, log_x, title)


def draw(name, rows, x, y, color, log_x, title):
    import altair as alt

    data = [
        {**row, "low": row[y] - row.get(f"{y}_std", 0), "high": row[y] + row.get(f"{y}_std", 0)}
        for row in rows
    ]
    base = alt.Chart(alt.Data(values=data), title=title, width=420, height=240).encode(
        x=alt.X(
            f"{x}:Q",
            scale=alt.Scale(type="log" if log_x else "linear", zero=False),
            title=x.replace("_", " "),
        ),
        color=alt.Color(f"{color}:N", title=color.replace("_", " ")),
    )
    line = base.mark_line(point=True).encode(
        y=alt.Y(f"{y}:Q", scale=alt.Scale(zero=False), title=y.replace("_", " "))
    )
    spread = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=y.replace("_", " ")), y2="high:Q")
    figure = ROOT / "docs" / "_static" / "findings" / f"{name}.svg"
    figure.parent.mkdir(parents=True, exist_ok=True)
    (line + spread).save(str(figure))
    print(figure)
