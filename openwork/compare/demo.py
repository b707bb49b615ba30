"""The contest of ``openwork demo``: a wide perceptron on handwritten digits, dense and sparse, in a minute or
two.

Settings were chosen on the validation part, with other seeds than the ones used here: one learning rate
serves dense and sparse networks alike, SET freezes its topology for the last quarter as RigL does, and RigL
loses no step to its updates, of which so short a run has few.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from openwork.compare.contest import Contestant, Setting
from openwork.compare.machine import Machine, machine
from openwork.compare.perceptrons import Perceptrons
from openwork.compare.record import Record
from openwork.compare.report import page
from openwork.compare.standings import Standings, compete
from openwork.compare.table import Row, as_json
from openwork.prune.magnitude import Magnitude
from openwork.tasks.digits import digits
from openwork.train.gmp import GMP
from openwork.train.rigl import RigL
from openwork.train.set import SET
from openwork.train.static_random import StaticRandom

SIZES = (64, 1000, 1000, 10)
BATCHES = (1, 64, 256)
SPARSITIES = (0.9, 0.95)
STEPS = 300
SECONDS = 0.2
"""Spent on each measurement of time."""
EVERY = 20
"""Steps between two changes of topology. The papers' 100 is meant for runs of many thousand steps."""


@dataclass(frozen=True)
class Outcome:
    """What a demo run found.

    Attributes:
        rows: the table.
        machine: where it was measured.
        best: the sparse network that was saved, in words; None if there is none.
        complete: whether it ran to its end.
        began: date and time, UTC.
        seconds: it took.
        folder: where its files are.
    """

    rows: tuple[Row, ...]
    machine: Machine
    best: str | None
    complete: bool
    began: str
    seconds: float
    folder: Path

    def as_json(self) -> dict[str, object]:
        """The outcome as plain data for ``json.dumps``."""
        return {
            "rows": [as_json(row) for row in self.rows],
            "machine": asdict(self.machine),
            "best": self.best,
            "complete": self.complete,
            "began": self.began,
            "seconds": self.seconds,
            "folder": str(self.folder),
        }


def contestants(sparsities: Sequence[float], steps: int) -> list[Contestant]:
    """The dense network, then every method at every sparsity, sparsity by sparsity.

    Each shares its connections among the layers in the way that served it best on the validation part. One-shot
    magnitude is not trained again afterwards.
    """
    entered = [Contestant("dense")]
    for sparsity in sparsities:
        entered += [
            Contestant("static random", StaticRandom(sparsity=sparsity, steps=steps)),
            Contestant(
                "SET", SET(sparsity=sparsity, steps=steps, every=EVERY, until=0.75, drop_by="magnitude")
            ),
            Contestant("RigL", RigL(sparsity=sparsity, steps=steps, every=EVERY, replace=False)),
            Contestant("GMP", GMP(sparsity=sparsity, steps=steps, every=EVERY, allocation="global")),
            Contestant("magnitude, one shot", Magnitude(sparsity=sparsity, allocation="erk")),
        ]
    return entered


def setting(steps: int) -> Setting:
    """What all have in common: digits, the perceptron, Adam."""
    return Setting(digits(), Perceptrons(SIZES), steps, batch_size=64, learning_rate=0.003)


def demo(folder: Path, *, seeds: int = 3, quick: bool = False) -> Outcome:
    """Run the contest and write its files.

    An interruption (Ctrl-C) ends it early with what is known by then, if that is anything.

    Args:
        folder: for the files, see :mod:`openwork.compare.record`.
        seeds: how many, from 0 on.
        quick: one sparsity, one seed and a quarter of the steps: shows that everything works, not how well.

    Raises:
        ValueError: no seeds.
        KeyboardInterrupt: interrupted before there was anything to show.
    """
    if seeds < 1:
        raise ValueError(f"a mean needs at least one seed; got {seeds}")
    steps, sparsities, count = (STEPS // 4, SPARSITIES[:1], 1) if quick else (STEPS, SPARSITIES, seeds)
    record = Record(folder)
    begin, began = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    common, entered = setting(steps), contestants(sparsities, steps)
    standings = Standings()
    complete = False

    def outcome() -> Outcome:
        best = standings.best()
        rows, seconds = tuple(standings.rows()), round(time.monotonic() - begin, 1)
        described = None if best is None else f"{best.contestant}, seed {best.seed}"
        return Outcome(rows, machine(), described, complete, began, seconds, folder)

    def write(report: str | None = None) -> None:
        record.conclude(outcome().as_json() | _setting(common, entered, range(count)), report)

    try:
        for standings, trained in compete(common, entered, range(count), BATCHES, seconds=SECONDS):
            record.add(trained)
            if (best := standings.best()) is not None:
                record.keep(best)
            write()
        complete = True
    except KeyboardInterrupt:
        if not standings.rows():
            raise
    found = outcome()
    write(
        page(
            found.rows, machine=found.machine, networks=standings.trained, about=_about(found, common, count)
        )
    )
    return found


def _setting(common: Setting, entered: Sequence[Contestant], seeds: Sequence[int]) -> dict[str, object]:
    return {
        "setting": {
            "task": str(common.task),
            "model": str(Perceptrons(SIZES)),
            "steps": common.steps,
            "batch_size": common.batch_size,
            "learning_rate": common.learning_rate,
            "seeds": list(seeds),
        },
        "methods": [entry.method.record() for entry in entered if entry.method is not None],
    }


def _about(found: Outcome, common: Setting, seeds: int) -> str:
    sizes = "-".join(map(str, SIZES))
    told = (
        f"A perceptron {sizes} on {common.task.name}: {common.steps} steps of Adam in batches of "
        f"{common.batch_size} for each method, {seeds} seed{'s' if seeds > 1 else ''}. Accuracy is on "
        f"{len(common.task.test)} test examples; settings were chosen on others. Begun {found.began}, {found.seconds:.0f} s."
    )
    return (
        told
        if found.complete
        else f"{told} It was interrupted: some methods were run on fewer seeds, or not at all."
    )
