"""The tables of docs/evidence/comparison.md: every method on digits, in a short and in a longer run, and on clothes.

    python benchmarks/comparison.py                  # all, about an hour on one quiet core
    python benchmarks/comparison.py digits --seeds 1

Finished runs are kept in ``--out``, so an interrupted comparison goes on where it was. Each result is a dated file in
``benchmarks/results``; its tables are printed as Markdown.
"""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from openwork.compare.comparison import Comparison, as_json, cells, run
from openwork.compare.field import UNSCALED, shelf
from openwork.compare.machine import machine
from openwork.compare.perceptrons import Perceptrons
from openwork.method import get as get_method
from openwork.tasks import get
from openwork.tasks.task import fewer

BASELINES = ("dense", "dense, small", "static_random", UNSCALED, "random_search")
COLUMNS = ("method", "kept", "accuracy %", "- dense", "- random", "- small", "test loss", "train loss")


def setting(name):
    """Task, hidden units, sparsities and steps."""
    return {
        "digits": lambda: (get("digits"), (256, 256), (0.9, 0.98), 300),
        "digits-longer": lambda: (get("digits"), (256, 256), (0.98,), 1500),
        "clothes": lambda: (fewer(get("fashion_mnist"), 10_000), (112, 112), (0.9, 0.98), 400),
    }[name]()


def compared(name, methods, seeds, split, folder):
    """The comparison and its lines."""
    task, hidden, sparsities, steps = setting(name)
    first = [get_method("static_random"), get_method("random_search")]
    comparison = Comparison(
        task=task,
        model=Perceptrons((task.train.inputs[0].numel(), *hidden, len(task.classes))),
        methods=[
            *first,
            *(cls for cls in shelf() if cls not in first and (not methods or cls.name in methods)),
        ],
        sparsities=sparsities,
        seeds=range(seeds),
        steps=steps,
        split=None if split == "own" else split,
    )
    return comparison, [*run(comparison, folder)][-1]


def table(lines, sparsity):
    """The lines of one sparsity, best first, the dense network on top."""
    dense = [line for line in lines if line.sparsity_asked == 0.0]
    rest = sorted(
        (line for line in lines if line.sparsity_asked == sparsity), key=lambda line: -(line.accuracy or 0.0)
    )
    text = [f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    for line in [*dense, *rest]:
        told = cells(line)
        name = line.method.replace("_", r"\_")
        told["method"] = f"**{name}**" if line.method in BASELINES else name
        told["accuracy %"] = told["accuracy %"] or f"failed: {line.failed}"
        text.append(f"| {' | '.join(told[column] for column in COLUMNS)} |")
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=("digits", "clothes", "digits-longer"))
    parser.add_argument("--methods", nargs="+", help="all if none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="erk", help='an allocation, or "own"')
    parser.add_argument("--out", type=Path, default=Path("openwork-compare"), help="folder of finished runs")
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    for name in options.names:
        comparison, lines = compared(name, options.methods, options.seeds, options.split, options.out)
        told = {**as_json(comparison, lines), "machine": asdict(machine())}
        suffix = "" if options.split == "erk" else f"-{options.split}"
        date = datetime.now(UTC).date().isoformat()
        path = results / f"{date}-compare-{name}{suffix}.json"
        path.write_text(json.dumps(told, indent=1) + "\n")
        print(path)
        for sparsity in comparison.sparsities:
            print(f"\n## {name} at {100 * sparsity:g} %\n\n{table(lines, sparsity)}\n")


if __name__ == "__main__":
    main()
