"""Killed at random moments: what lies on disk is whole, and going on ends in the bits of a run that nobody killed.

    python benchmarks/kills.py --runs 200

Four kinds of runs are started, killed with SIGKILL one to three times, each time after a random part of what they take, and begun
again until they are done:

- ``train``: every training method, masked and stored, with every optimizer of ``torch.optim`` in turn; a checkpoint each step;
- ``together``: the same in two processes under DistributedDataParallel; one is killed, or both;
- ``prune``: ``openwork prune --resume`` from one Hugging Face folder to another;
- ``compare``: ``openwork compare``.

After every kill the files are read: none may be there that is not whole. Runs are forked from a process that has imported
everything and computed nothing, so that the time of a kill falls into work and not into imports.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel

import openwork as ow
from openwork import archives, hf
from openwork.calibrator.checkpoint import PARTS
from openwork.cli import main as command
from openwork.compare.ledger import Ledger
from openwork.compare.machine import machine
from openwork.durable import replacing
from openwork.files.container import opened
from openwork.method import registry
from openwork.sparsifier import Training
from openwork.testing import batches, perceptron, plant_zeros

SHARES = {"train": 60, "together": 12, "prune": 14, "compare": 14}
"""Runs of each kind, of a hundred."""

REFUSED = 7
"""How a run ends that the method refuses to begin."""

STEPS = 24
"""Of a training run."""

PATIENCE = 120
"""Seconds for a run that nobody kills."""

LEFTOVER = re.compile(r"\.openwork-[0-9a-f]{16}\.tmp|\.tmp\w{6}")
"""What a kill in the middle of writing may leave beside whole files: ours, and that of safetensors."""

Optimizers = Callable[[nn.Module], list[optim.Optimizer]]


def of(cls: type[optim.Optimizer], **options: Any) -> Optimizers:
    return lambda model: [cls(model.parameters(), **options)]


def muon(model: nn.Module) -> list[optim.Optimizer]:
    """Muon trains matrices only; what is none has another optimizer."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [optim.Muon(matrices, lr=0.02), optim.SGD(others, lr=0.05)]


OPTIMIZERS: dict[str, Optimizers] = {
    "sgd": of(optim.SGD, lr=0.05),
    "momentum": of(optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": of(optim.Adam, lr=0.01),
    "adam fused amsgrad": of(optim.Adam, lr=0.01, fused=True, amsgrad=True),
    "adamw": of(optim.AdamW, lr=0.01, weight_decay=0.5),
    "adafactor": of(optim.Adafactor, lr=0.05),
    "rmsprop": of(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "adagrad": of(optim.Adagrad, lr=0.05),
    "adadelta": of(optim.Adadelta),
    "adamax": of(optim.Adamax, lr=0.01),
    "nadam": of(optim.NAdam, lr=0.01),
    "radam": of(optim.RAdam, lr=0.01),
    "asgd": of(optim.ASGD, lr=0.05),
    "rprop": of(optim.Rprop, lr=0.01),
    "lbfgs": of(optim.LBFGS, lr=0.1, max_iter=3),
    "muon": muon,
}
TRAINING = {name: cls for name, cls in registry().items() if issubclass(cls, Training)}


class Work(ABC):
    """One run, which goes on from what it finds in its folder."""

    processes = 1

    @abstractmethod
    def run(self, folder: Path, rank: int) -> None:
        """Work to the end."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Read everything that lies there; raises where anything is not whole."""

    @abstractmethod
    def result(self, folder: Path) -> str:
        """The bits of what a finished run has left."""


class Train(Work):
    """A training loop that saves a checkpoint after each step, and the model at the end."""

    def __init__(self, name: str, stored: bool, optimizer: str) -> None:
        fields = {field.name for field in dataclasses.fields(TRAINING[name])}
        options = {"steps": STEPS, "every": 4, "rounds": 3, "sparsity": 0.6}
        if TRAINING[name].reads_zeros:
            del options["sparsity"]
        self.method = TRAINING[name](**{key: value for key, value in options.items() if key in fields})
        self.name, self.stored, self.optimizer = name, stored, optimizer

    def __str__(self) -> str:
        return f"{self.name}, {'stored' if self.stored else 'masked'}, {self.optimizer}"

    def run(self, folder: Path, rank: int) -> None:
        model = perceptron()
        plant_zeros(model, self.method)
        try:
            if self.stored:
                ow.to_sparse_(model, None if self.method.reads_zeros else self.method)
            wrapped = self.wrapped(model, folder)
            optimizers = OPTIMIZERS[self.optimizer](model)
            sparsifier = ow.attach(wrapped, optimizers, self.method)
        except ValueError:
            os._exit(REFUSED)
        path, first = folder / "run", 0
        if path.exists():
            extra = ow.load_checkpoint(path, model=model, optimizer=optimizers, sparsifier=sparsifier)
            first = extra["step"]
        for step, (x, y) in enumerate(batches(STEPS)[first:], first + 1):
            share = slice(rank, None, self.processes)
            self.step(wrapped, optimizers, x[share], y[share])
            if rank == 0:
                ow.save_checkpoint(
                    path, model=model, optimizer=optimizers, sparsifier=sparsifier, extra={"step": step}
                )
            self.meet()
        if rank == 0:
            ow.save(model, folder / "model.safetensors", masks=None if self.stored else sparsifier.masks)

    @staticmethod
    def step(model: nn.Module, optimizers: list[optim.Optimizer], x: torch.Tensor, y: torch.Tensor) -> None:
        def loss() -> float:
            for optimizer in optimizers:
                optimizer.zero_grad()
            found = nn.functional.cross_entropy(model(x), y)
            found.backward()
            return found.item()

        first, *others = optimizers
        first.step(loss)
        for other in others:
            other.step()

    def wrapped(self, model: nn.Module, folder: Path) -> nn.Module:
        return model

    def meet(self) -> None:
        """Nobody to wait for."""

    def check(self, folder: Path) -> None:
        if (folder / "run").exists():
            archives.read(folder / "run")
        if (folder / "model.safetensors").exists():
            ow.load(folder / "model.safetensors")

    def result(self, folder: Path) -> str:
        return digest([archives.read(folder / "run"), ow.load(folder / "model.safetensors")])


class Together(Train):
    """The same, in two processes."""

    processes = 2

    def __str__(self) -> str:
        return f"{super().__str__()}, two processes"

    def wrapped(self, model: nn.Module, folder: Path) -> nn.Module:
        return DistributedDataParallel(model)

    def run(self, folder: Path, rank: int) -> None:
        # The parent is one process all the time; a meeting place of before a kill would be full of the dead.
        meeting = f"file://{folder}/meeting-{os.getppid()}-{len(list(folder.parent.glob('begun-*')))}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=self.processes)
        super().run(folder, rank)
        distributed.barrier()
        distributed.destroy_process_group()

    def meet(self) -> None:
        distributed.barrier()


class Prune(Work):
    """The command line, with finished blocks kept on the way."""

    def __init__(self, model: Path, *options: str) -> None:
        self.model, self.options = model, options

    def __str__(self) -> str:
        return f"prune {' '.join(self.options)}"

    def run(self, folder: Path, rank: int) -> None:
        if (folder / "out").exists():
            return  # it was killed when all was done
        text = ["--data", f"{self.model}.txt", "--samples", "8", "--seqlen", "12"]
        if code := command(["prune", str(self.model), str(folder / "out"), *self.options, *text, "--resume"]):
            raise SystemExit(code)

    def check(self, folder: Path) -> None:
        for path in (folder / "out.unfinished").glob("block-*.pt"):
            archives.read(path, PARTS)
        if (folder / "out").exists():
            hf.load(folder / "out")

    def result(self, folder: Path) -> str:
        with opened(folder / "out" / "model.safetensors") as file:
            return digest(
                [dict(sorted(file.metadata.items())), {name: file.read(name) for name in sorted(file.arrays)}]
            )


class Compare(Work):
    """The command line; a finished network is a line of its file."""

    def __str__(self) -> str:
        return "compare set rigl"

    def run(self, folder: Path, rank: int) -> None:
        options = [
            "--steps",
            "15",
            "--seeds",
            "1",
            "--hidden",
            "16",
            "--sparsity",
            "0.9",
            "--examples",
            "200",
        ]
        if code := command(["compare", "set", "rigl", *options, "--out", str(folder), "--json"]):
            raise SystemExit(code)

    def check(self, folder: Path) -> None:
        Ledger(folder / "runs.jsonl")

    def result(self, folder: Path) -> str:
        cells = Ledger(folder / "runs.jsonl").cells
        return digest(
            {key: {what: cell[what] for what in cell if what != "seconds"} for key, cell in cells.items()}
        )


def digest(content: object) -> str:
    """A name of nested values and tensors: the same if and only if all their bits are."""
    made = hashlib.blake2b(digest_size=16)

    def add(found: object) -> None:
        made.update(type(found).__name__.encode())
        if isinstance(found, torch.Tensor):
            made.update(f"{found.dtype} {list(found.shape)}".encode())
            made.update(found.contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(found, Mapping):
            for key, value in found.items():
                add(key)
                add(value)
        elif isinstance(found, (list, tuple)):
            made.update(str(len(found)).encode())
            for value in found:
                add(value)
        else:
            made.update(repr(found).encode())

    add(content)
    return made.hexdigest()


def begun(work: Work, folder: Path) -> list[int]:
    """Fork the processes of a run; what they say goes to a file beside the folder."""
    number = len(list(folder.parent.glob("begun-*")))
    said = folder.parent / f"begun-{number}"
    said.touch()
    children = []
    for rank in range(work.processes):
        if child := os.fork():
            children.append(child)
            continue
        status = 1
        try:
            output = os.open(said, os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            work.run(folder, rank)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return children


def ended(children: list[int], seconds: float) -> list[int] | None:
    """The exit codes once all have ended, or None if one has not in that time."""
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    while len(codes) < len(children) and time.monotonic() < until:
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    return [codes[child] for child in children] if len(codes) == len(children) else None


def stopped(children: list[int], victims: list[int]) -> None:
    """Kill some, and what has not noticed after a while, too."""
    for child in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    time.sleep(0.0 if victims == children else 0.2)
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def straight(work: Work, folder: Path) -> tuple[str, float] | None:
    """The result of a run that nobody kills, and its seconds; None if the method refuses to begin."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    codes = ended(begun(work, folder), PATIENCE)
    if codes and all(code == REFUSED for code in codes):
        return None
    if codes is None or any(codes):
        raise AssertionError(f"{work} ends with {codes} without being killed:\n{said(folder)}")
    return work.result(folder), time.monotonic() - began


def said(folder: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in sorted(folder.parent.glob("begun-*")))


def survive(work: Work, folder: Path, seconds: float, expected: str, chance: random.Random) -> int:
    """Kill a run one to three times and let it end; returns how many kills found it alive, at least one.

    Raises:
        AssertionError: a file was not whole, or the end is not that of the straight run.
    """
    kills = 0
    for turn in range(20):
        files = folder / str(turn)
        files.mkdir(parents=True)
        for _ in range(chance.choice([1, 2, 3])):
            kills += killed(work, files, chance.uniform(0, seconds), chance)
        codes = ended(begun(work, files), PATIENCE)
        assert codes == [0] * work.processes, f"{work} ended with {codes}:\n{said(files)}"
        assert work.result(files) == expected, f"{work}: other bits than those of a run that nobody killed"
        if kills:
            return kills
        seconds *= 0.7  # it was faster than the straight run every time
    raise AssertionError(f"{work} is never alive when it is to be killed")


def killed(work: Work, folder: Path, after: float, chance: random.Random) -> bool:
    """Begin a run, kill it, and read what it leaves; whether it was alive."""
    children = begun(work, folder)
    codes = ended(children, after)
    if codes is None:
        stopped(children, [chance.choice(children)] if chance.random() < 0.5 else children)
    assert codes is None or not any(codes), f"{work} ended with {codes} when begun again:\n{said(folder)}"
    work.check(folder)
    left = {entry.name for entry in folder.iterdir() if entry.name.startswith(".")}
    assert all(LEFTOVER.fullmatch(name) for name in left), left
    return codes is None


def kinds(folder: Path) -> dict[str, Callable[[int], Work]]:
    """How to make the run of a number, by kind."""
    model = tiny(folder / "model")
    cells = [(name, stored) for name in TRAINING for stored in (False, True)]
    optimizers = list(OPTIMIZERS)
    recipes = [
        ("--method", "sparsegpt", "--sparsity", "0.6"),
        ("--method", "wanda", "--pattern", "2:4", "--repair", "refit", "bias_correct"),
        ("--method", "magnitude", "--repair", "dsnot", "--format", "sparse"),
        ("--method", "gptq"),
    ]
    return {
        "train": lambda n: Train(*cells[n % len(cells)], optimizers[(n + n // len(cells)) % len(optimizers)]),
        "together": lambda n: Together(*cells[n % len(cells)], ["adam", "momentum"][n % 2]),
        "prune": lambda n: Prune(model, *recipes[n % len(recipes)]),
        "compare": lambda n: Compare(),
    }


def tiny(path: Path) -> Path:
    """A model of language with a tokenizer of single characters, and a text beside it."""
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    words = tokenizers.models.WordLevel({"?": 0} | {c: i for i, c in enumerate(alphabet, 1)}, unk_token="?")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="?", model_max_length=64
    )
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=28, num_key_value_heads=2, tie_word_embeddings=False, **sizes
    )
    hf.save(transformers.LlamaForCausalLM(config), path, tokenizer=tokenizer)
    chance = random.Random(0)
    path.with_suffix(".txt").write_text("".join(chance.choices(alphabet, k=4000)))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=SHARES)
    parser.add_argument("--out", type=Path, help="where to write the result")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    began, chance, faults = time.monotonic(), random.Random(asked.seed), []
    runs, kills, tried, refused = Counter[str](), Counter[str](), Counter[str](), set[str]()
    shares = {kind: share for kind, share in SHARES.items() if asked.kind in (None, kind)}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make = kinds(root)
        for kind, share in shares.items():
            wanted, number = max(1, asked.runs * share // sum(shares.values())), 0
            known: dict[str, tuple[str, float] | None] = {}
            while runs[kind] < wanted:
                work, folder = make[kind](number), root / f"{kind}-{number}"
                number += 1
                try:
                    if str(work) not in known:
                        known[str(work)] = straight(work, folder / "straight" / "files")
                    if (found := known[str(work)]) is None:
                        refused.add(str(work))
                        continue
                    kills[kind] += survive(work, folder / "killed", found[1], found[0], chance)
                except AssertionError as fault:
                    faults.append(str(fault))
                    print(fault, file=sys.stderr, flush=True)
                runs[kind] += 1
                tried[str(work)] += 1
                if asked.out:
                    seconds = round(time.monotonic() - began)
                    write(asked.out, asked, {"runs": runs, "kills": kills, "faults": faults, "seconds": seconds,
                                             "tried": tried, "refused": sorted(refused)})  # fmt: skip
            print(f"{kind}: {runs[kind]} runs, {kills[kind]} kills", file=sys.stderr, flush=True)
    print(f"{runs.total()} runs, {kills.total()} kills, {len(faults)} faults")
    return 1 if faults else 0


def write(path: Path, asked: argparse.Namespace, found: Mapping[str, object]) -> None:
    result = {
        "command": "python benchmarks/kills.py " + " ".join(sys.argv[1:]),
        "openwork": ow.__version__,
        "torch": torch.__version__,
        "machine": dataclasses.asdict(machine()),
        "seed": asked.seed,
        "asked": asked.runs,
        **found,
    }
    text = json.dumps(result, indent=2) + "\n"
    with replacing(path, len(text)) as partial:
        partial.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
