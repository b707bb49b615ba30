"""``openwork compare``: methods against each other and against the naive baselines, at equal size and equal cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from openwork.cli.output import JSON, say, show, show_json

Several = Parameter(consume_multiple=True)


def compare(
    *methods: str,
    task: str = "digits",
    examples: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    sparsity: Annotated[tuple[float, ...], Several] = (0.9, 0.98),
    seeds: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 3,
    hidden: Annotated[tuple[int, ...], Several] = (512, 512),
    steps: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 300,
    batch: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 64,
    learning_rate: float = 0.003,
    split: str = "erk",
    out: Path = Path("openwork-compare"),
    json: JSON = False,
) -> int:
    """Train one network by every method at equal kept count and equal steps, beside dense, a dense network of equal size,
    a random topology and random search. What loses is printed as well.

    Interrupted by Ctrl-C, it shows what is known by then; started again, it runs only what is missing.

    Parameters
    ----------
    methods
        Methods, as in "openwork methods"; all that decide on connections if none is named. The baselines always take part.
    task
        A task with pictures or tables in classes, such as "digits" or "fashion_mnist".
    examples
        Train on so many examples only, the same for all, drawn at random; test on all.
    sparsity
        Fractions of zeros over all weights.
    seeds
        How many times everything is trained.
    hidden
        Units of the hidden layers of the perceptron. n:m patterns need a common divisor of all widths.
    steps
        Optimizer steps of every run.
    batch
        Examples a step.
    learning_rate
        Of Adam at the start.
    split
        How connections are shared among layers, the same for all methods but those that find it themselves: an allocation, or
        "own" for the default of each method.
    out
        Folder for runs.jsonl, one line a finished run.
    """
    from openwork.compare.comparison import Comparison, Line, as_json, cells, run
    from openwork.compare.field import shelf
    from openwork.compare.machine import machine
    from openwork.compare.perceptrons import Perceptrons
    from openwork.method import check_fraction, get
    from openwork.tasks import get as get_task
    from openwork.tasks.task import fewer

    for fraction in sparsity:
        check_fraction("--sparsity", fraction, below_one=True)
    data = get_task(task)
    data = data if examples is None else fewer(data, examples)
    baselines = [get("static_random"), get("random_search")]
    chosen = [get(name) for name in methods] or shelf()
    sizes = (data.train.inputs[0].numel(), *hidden, len(data.classes))
    comparison = Comparison(
        task=data,
        model=Perceptrons(sizes),
        methods=[*baselines, *(cls for cls in chosen if cls not in baselines)],
        sparsities=sparsity,
        seeds=range(seeds),
        steps=steps,
        batch_size=batch,
        learning_rate=learning_rate,
        split=None if split == "own" else split,
    )
    table: list[Line] = []
    complete = False
    try:
        for found in run(comparison, out):
            table = found
        complete = True
    except KeyboardInterrupt:
        if not table:
            raise
    if json:
        show_json(as_json(comparison, table))
    else:
        show(
            [
                cells(line)
                for line in sorted(table, key=lambda line: (line.sparsity_asked, -(line.accuracy or 0.0)))
            ]
        )
    say(
        f"\n{comparison.task}\n{comparison.model}, {steps} steps of Adam in batches of {batch}, {seeds} seeds\n{machine()}"
    )
    if not complete:
        say("interrupted: start it again to run what is missing")
    return 0 if complete else 130
