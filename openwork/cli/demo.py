"""``openwork demo``: a wide network on real digits, dense and sparse: trained, saved, packed and timed."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from openwork.cli.output import JSON, say, show_json, show_table


def demo(
    *,
    seeds: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 3,
    out: Path = Path("openwork-demo"),
    quick: bool = False,
    json: JSON = False,
) -> int:
    """Train a small network dense and by five sparse methods, and measure what each gained and lost on this
    machine.

    Takes one to two minutes on two cores. Interrupted by Ctrl-C, it shows and keeps what is known by then.

    Parameters
    ----------
    seeds
        How many times everything is trained; accuracies are means over them.
    out
        Folder for run.json, metrics.jsonl, report.html and the best sparse model.
    quick
        One seed, one sparsity, few steps: shows that everything works, not how well.
    """
    from openwork.compare.demo import demo as run
    from openwork.compare.table import table

    outcome = run(out, seeds=seeds, quick=quick)
    if json:
        show_json(outcome.as_json())
    else:
        show_table(table(outcome.rows))
    say(f"\n{outcome.machine}\n{outcome.seconds:.0f} s; best sparse network: {outcome.best or 'none yet'}")
    say(f"model.safetensors, run.json, metrics.jsonl and report.html are in {outcome.folder}")
    if not outcome.complete:
        say("interrupted: the table has fewer seeds or methods than it could have")
    return 0 if outcome.complete else 130
