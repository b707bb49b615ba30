"""Every method on the same task, at equal kept count and equal training cost, beside the baselines that it has to beat.

The baselines are a dense network of full size, a dense one with as many connections as the sparse ones keep, a random topology,
and the best of many random topologies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from openwork.compare.contest import Contestant, Setting, Trained, train
from openwork.compare.field import SPLIT, field
from openwork.compare.ledger import Cell, Ledger, key
from openwork.compare.perceptrons import Perceptrons
from openwork.compare.table import thousands
from openwork.method import Method
from openwork.progress import phase
from openwork.tasks.task import Task

FILE = "runs.jsonl"
LAST = 0.1
"""The training loss is the mean over this last part of the steps."""


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        task: the data.
        model: the networks that become sparse.
        methods: which methods take part.
        sparsities: fractions of zeros over all weights.
        seeds: of initial weights, order of data and method.
        steps: optimizer steps of every run: Adam, its learning rate falling to zero along a cosine.
        batch_size: examples a step.
        learning_rate: at the start.
        split: the allocation of all methods but those of which it is a part; None leaves each its default.
    """

    task: Task
    model: Perceptrons
    methods: Sequence[type[Method]]
    sparsities: Sequence[float]
    seeds: Sequence[int]
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 0.003
    split: str | None = SPLIT

    @property
    def setting(self) -> Setting:
        """What all have in common."""
        return Setting(self.task, self.model, self.steps, self.batch_size, self.learning_rate)

    def groups(self) -> dict[float, list[Contestant]]:
        """Sparsity -> who takes part at it. The dense network is alone, at 0."""
        return {0.0: [Contestant("dense")]} | {
            s: field(self.methods, s, self.steps, self.model, split=self.split, examples=len(self.task.train))
            for s in self.sparsities
        }

    def record(self) -> dict[str, Any]:
        """What decides the outcome of a run, besides contestant and seed, as plain data."""
        return {
            "task": str(self.task),
            "model": str(self.model),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }


@dataclass(frozen=True)
class Line:
    """What came out for one contestant at one sparsity.

    Attributes:
        method: its name.
        sparsity_asked: fraction of zeros asked for.
        kept: connections, exactly.
        accuracy: fraction of the test part classified correctly, mean over seeds.
        accuracy_std: standard deviation over seeds (n - 1); None for a single seed.
        accuracies: one a seed.
        against_dense, against_random, against_small: accuracy less that of the dense network, of static random and of the
            small dense network; None where that has not been run.
        test_loss: cross entropy on the test part in nats, mean over seeds.
        train_loss: on the last batches of training.
        seconds: of one training run.
        failed: why runs came to nothing, if any did; means are over the others.
    """

    method: str
    sparsity_asked: float
    kept: int | None
    accuracy: float | None
    accuracy_std: float | None
    accuracies: tuple[float, ...]
    against_dense: float | None
    against_random: float | None
    against_small: float | None
    test_loss: float | None
    train_loss: float | None
    seconds: float | None
    failed: str | None


def run(comparison: Comparison, folder: Path) -> Iterator[list[Line]]:
    """Run what is not in the folder's file yet: all contestants on the first seed, then on the next.

    Yields:
        The table so far, after every run that was made or found.
    """
    ledger, groups = Ledger(folder / FILE), comparison.groups()
    done: dict[tuple[float, str], list[Cell]] = {}
    whole = len(comparison.seeds) * sum(map(len, groups.values()))
    with phase(f"{whole} networks", whole) as bar:
        for seed in comparison.seeds:
            for sparsity, contestants in groups.items():
                for contestant in contestants:
                    name = key({**comparison.record(), **_who(contestant), "seed": seed})
                    cell = ledger.get(name)
                    if cell is None:
                        cell = ledger.enter(name, outcome(comparison.setting, contestant, sparsity, seed))
                    done.setdefault((sparsity, contestant.name), []).append(cell)
                    bar.advance()
                    yield lines(done)


def outcome(setting: Setting, contestant: Contestant, sparsity: float, seed: int) -> Cell:
    """Train one contestant. A run that diverges, or a network that the method refuses, is an outcome as well."""
    who = {**_who(contestant), "sparsity_asked": sparsity, "seed": seed}
    try:
        trained = train(setting, contestant, seed)
    except (ValueError, FloatingPointError) as error:
        return {**who, "failed": str(error)}
    return {**who, **_numbers(trained)}


def lines(done: dict[tuple[float, str], list[Cell]]) -> list[Line]:
    """The table of finished runs, by sparsity and name of the contestant."""
    accuracy = {who: _mean(cells, "test_accuracy") for who, cells in done.items()}
    found = []
    for (sparsity, name), cells in done.items():
        accuracies = tuple(cell["test_accuracy"] for cell in cells if "test_accuracy" in cell)
        mine = accuracy[sparsity, name]

        def ahead_of(other: tuple[float, str], mine: float | None = mine) -> float | None:
            theirs = accuracy.get(other)
            return None if mine is None or theirs is None else mine - theirs

        found.append(
            Line(
                method=name,
                sparsity_asked=sparsity,
                kept=next((cell["kept"] for cell in cells if "kept" in cell), None),
                accuracy=mine,
                accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
                accuracies=accuracies,
                against_dense=ahead_of((0.0, "dense")),
                against_random=ahead_of((sparsity, "static_random")),
                against_small=ahead_of((sparsity, "dense, small")),
                test_loss=_mean(cells, "test_loss"),
                train_loss=_mean(cells, "train_loss"),
                seconds=_mean(cells, "seconds"),
                failed="; ".join({cell["failed"]: None for cell in cells if "failed" in cell}) or None,
            )
        )
    return found


def cells(line: Line) -> dict[str, str]:
    """A line as a person reads it: column -> text. Accuracies and their differences are in percent points."""
    spread = "" if line.accuracy_std is None else f" ± {100 * line.accuracy_std:.1f}"
    return {
        "asked": f"{100 * line.sparsity_asked:g} %",
        "method": line.method,
        "kept": "" if line.kept is None else thousands(line.kept),
        "accuracy %": "" if line.accuracy is None else f"{100 * line.accuracy:.1f}{spread}",
        "- dense": _points(line.against_dense),
        "- random": _points(line.against_random),
        "- small": _points(line.against_small),
        "test loss": "" if line.test_loss is None else f"{line.test_loss:.3f}",
        "train loss": "" if line.train_loss is None else f"{line.train_loss:.4f}",
        "s": "" if line.seconds is None else f"{line.seconds:.1f}",
        "failed": line.failed or "",
    }


def as_json(comparison: Comparison, table: Sequence[Line]) -> dict[str, object]:
    """The comparison and its table as plain data for ``json.dumps``."""
    return {
        **comparison.record(),
        "sparsities": list(comparison.sparsities),
        "split": comparison.split or "own",
        "seeds": list(comparison.seeds),
        "lines": [asdict(line) for line in table],
    }


def _who(contestant: Contestant) -> dict[str, Any]:
    return {
        "contestant": contestant.name,
        "method": None if contestant.method is None else contestant.method.record(),
        "pruned_at": contestant.pruned_at,
        "model_of_its_own": None if contestant.model is None else str(contestant.model),
    }


def _numbers(trained: Trained) -> Cell:
    losses = trained.run.losses
    last = losses[-max(1, round(LAST * len(losses))) :]
    return {
        "kept": trained.kept,
        "sparsity": trained.sparsity,
        "test_accuracy": trained.test.accuracy,
        "test_loss": trained.test.loss,
        "validation_accuracy": trained.validation.accuracy,
        "validation_loss": trained.validation.loss,
        "train_loss": sum(last) / len(last),
        "seconds": trained.run.seconds,
    }


def _mean(finished: Sequence[Cell], what: str) -> float | None:
    found = [cell[what] for cell in finished if what in cell]
    return mean(found) if found else None


def _points(difference: float | None) -> str:
    return "" if difference is None else f"{100 * difference:+.1f}"
