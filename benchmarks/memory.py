"""Does training take the memory that was predicted? Each form trains in a process of its own.

The peak of the resident memory over a few steps, updates of the topology among them, is compared with `openwork.training_memory`.
What it takes for a moment to build the model is no part of training. `--grid` does so for perceptrons of several widths and a
network of convolutions, methods and optimizers, and tells the worst.

    python benchmarks/memory.py [--width 4096] [--sparsity 0.9] [--optimizer adam] [--method set]
        [--convolutions] [--grid] [--forms dense,masked,stored] [--json]
"""

import argparse
import dataclasses
import gc
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import openwork as ow
from openwork.memory import FORMS
from openwork.tasks.mlp import mlp


def resident(what: str) -> int:
    """Bytes of this process that are in memory: now (`VmRSS`), or at most so far (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024


METHODS = {
    "static_random": ow.StaticRandom(allocation="uniform"),
    "set": ow.SET(allocation="uniform", steps=4, every=2),
    "rigl": ow.RigL(allocation="uniform", steps=4, every=2, until=1.0),
    "dnw": ow.DNW(allocation="uniform"),
}


def method(name: str, sparsity: float) -> ow.Method:
    return dataclasses.replace(METHODS[name], sparsity=sparsity)


def stored(sizes: list[int], sparsity: float) -> nn.Sequential:
    """The same perceptron, built without a dense matrix at any time."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [ow.SparseLinear(inputs, outputs, sparsity=sparsity), nn.ReLU()]
    return ow.chain_(nn.Sequential(*layers[:-1]))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def convolutions() -> nn.Sequential:
    """A small network of convolutions for images of 3 x 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(128, 256, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256 * 64, 10),
    )  # fmt: skip


def peak(form: str, name: str, sizes: list[int], sparsity: float, optimizer: str, batch: int) -> int:
    """Bytes that training took at most."""
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    small = nn.Linear(1024, 1024)  # libraries and thread pools get their memory first
    warm = classes[optimizer](small.parameters(), lr=1e-3)
    step(small, warm, torch.zeros(batch, 1024), torch.zeros(batch, dtype=torch.int64))
    little = stored([64, 64, 10], 0.5)
    masked = mlp([64, 64, 10])
    for one in (little, masked):
        adam = classes[optimizer](one.parameters(), lr=1e-3)
        ow.attach(one, adam, method(name if one is masked else "rigl", 0.5))
        for _ in range(3):
            step(one, adam, torch.zeros(4, 64), torch.zeros(4, dtype=torch.int64))
    del small, warm, little, masked, one, adam
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    x = torch.randn(batch, sizes[0]) if sizes else torch.randn(batch, 3, 32, 32)
    y = torch.randint(10, (batch,))
    before = resident("VmRSS")
    if sizes:
        model = stored(sizes, sparsity) if form == "stored" else mlp(sizes)
    else:
        model = convolutions()
        if form == "stored":
            ow.to_sparse_(model, method(name, sparsity))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    trained = classes[optimizer](model.parameters(), lr=1e-3)
    if form != "dense":
        ow.attach(model, trained, method(name, sparsity))
    for _ in range(4):
        step(model, trained, x, y)
    return resident("VmHWM") - before


@dataclass(frozen=True)
class Cell:
    """What is trained; without sizes a network of convolutions."""

    method: str
    width: int
    optimizer: str
    sparsity: float
    batch: int

    @property
    def sizes(self) -> list[int]:
        return [784, self.width, self.width, 10] if self.width else []

    def predicted(self) -> ow.Memory:
        return ow.training_memory(
            mlp(self.sizes) if self.sizes else convolutions(),
            method(self.method, self.sparsity),
            torch.zeros(1, 784) if self.sizes else torch.zeros(1, 3, 32, 32),
            batch=self.batch,
            optimizer=self.optimizer,
        )

    def measured(self, form: str) -> int:
        """In a fresh process."""
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(
                peak, (form, self.method, self.sizes, self.sparsity, self.optimizer, self.batch)
            )

    def compared(self, forms: Iterable[str]) -> list[dict[str, object]]:
        predicted = self.predicted()
        return [
            {
                **asdict(self),
                "form": form,
                "predicted": predicted.forms[form].peak,
                "measured": self.measured(form),
            }
            for form in forms
            if not (form == "stored" and METHODS[self.method].latent)
        ]


GRID = [
    *(
        Cell(method, width, optimizer, 0.9, 128)
        for method in ("static_random", "set", "rigl")
        for width in (512, 1024, 2048)
        for optimizer in ("sgd", "adam")
    ),
    *(Cell(method, 0, "adam", 0.9, 128) for method in ("static_random", "set", "rigl")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--method", choices=METHODS, default="static_random")
    parser.add_argument("--convolutions", action="store_true", help="a network of convolutions instead")
    parser.add_argument("--grid", action="store_true", help="many networks and methods instead")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="adam")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    width = 0 if options.convolutions else options.width
    one = Cell(options.method, width, options.optimizer, options.sparsity, options.batch)
    # What is freed goes back at once: nothing but the program is measured.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    results = []
    if not (options.json or options.grid):
        print(one.predicted())
    for cell in GRID if options.grid else [one]:
        for r in cell.compared(options.forms.split(",")):
            results.append(r)
            if not options.json:
                print(
                    f"{r['method']:14}{r['width'] or 'conv':>5} {r['optimizer']:5}{r['form']:7} predicted "
                    f"{r['predicted'] / 2**20:8.1f} MiB, measured {r['measured'] / 2**20:8.1f}  "
                    f"{r['measured'] / r['predicted']:.3f}",
                    flush=True,
                )
    if options.json:
        json.dump({"threads": torch.get_num_threads(), "results": results}, sys.stdout, indent=1)
    elif options.grid:
        errors = sorted(abs(r["measured"] / r["predicted"] - 1) for r in results)
        print(f"off by {errors[-1]:.1%} at most, by {errors[len(errors) // 2]:.1%} in the middle")


if __name__ == "__main__":
    main()
