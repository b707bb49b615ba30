"""The files a run leaves behind. Each is written whole or not at all, after every network: an interruption
loses nothing.

======================  ===============================================================================
``run.json``            rows of the table, machine, setting, methods with every option, the best model
``metrics.jsonl``       one line an event: losses on the way, the outcome of every training run
``model.safetensors``   the best sparse network
``report.html``         the same for reading
======================  ===============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from openwork.compare.contest import Trained
from openwork.durable import replacing
from openwork.files import save

POINTS = 20
"""Losses recorded of each run; each is the mean over an equal part of its steps."""


class Record:
    """Writes the files of one run into a folder.

    Args:
        folder: made when the first file is written.

    Raises:
        NotADirectoryError: there is a file of that name.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"results go into a folder, but {folder} is a file: choose another one")
        self.folder = folder
        self._lines: list[str] = []
        self._best: Trained | None = None

    def add(self, trained: Trained) -> None:
        """Enter a network into ``metrics.jsonl``."""
        self._lines += [json.dumps(event) for event in _events(trained)]
        self._write("metrics.jsonl", "\n".join(self._lines) + "\n")

    def keep(self, best: Trained) -> None:
        """Save the model, if it is not the one that is saved already."""
        if best is not self._best:
            self.folder.mkdir(parents=True, exist_ok=True)
            method = best.contestant.method
            save(
                best.model,
                self.folder / "model.safetensors",
                history=[] if method is None else [method.record()],
            )
            self._best = best

    def conclude(self, run: Mapping[str, object], report: str | None = None) -> None:
        """Write ``run.json``, and ``report.html`` if there is one."""
        self._write("run.json", json.dumps(run, indent=2, ensure_ascii=False, default=str) + "\n")
        if report is not None:
            self._write("report.html", report)

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        with replacing(self.folder / name, len(content)) as partial:
            partial.write_bytes(content)


def curve(trained: Trained, points: int = POINTS) -> list[tuple[int, float]]:
    """The training loss on the way: ``(last step, mean loss)`` of equal parts of the run."""
    losses = trained.run.losses
    ends = sorted({len(losses) * i // points for i in range(1, points + 1)} - {0})
    return [
        (end, sum(losses[begin:end]) / (end - begin)) for begin, end in zip([0, *ends], ends, strict=False)
    ]


def _events(trained: Trained) -> Iterator[dict[str, object]]:
    contestant = trained.contestant
    who = {"method": contestant.name, "sparsity_asked": contestant.sparsity, "seed": trained.seed}
    if not contestant.prunes:
        for step, loss in curve(trained):
            yield {"event": "loss", **who, "step": step, "loss": loss}
    yield {
        "event": "trained",
        **who,
        "sparsity": trained.sparsity,
        "kept": trained.kept,
        "steps": trained.run.steps,
        "seconds": trained.run.seconds,
        "validation_loss": trained.validation.loss,
        "validation_accuracy": trained.validation.accuracy,
        "test_loss": trained.test.loss,
        "test_accuracy": trained.test.accuracy,
    }
