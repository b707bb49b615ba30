"""Does training take the memory that was predicted? Each form trains in a process of its own.

The peak of the resident memory, from before the model was built to after a few steps, is compared with
`openwork.training_memory`.

    python benchmarks/memory.py [--width 4096] [--sparsity 0.9] [--optimizer adam] [--json]
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import sys
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


def method(sparsity: float) -> ow.StaticRandom:
    return ow.StaticRandom(sparsity=sparsity, allocation="uniform")


def stored(sizes: list[int], sparsity: float) -> nn.Sequential:
    """The same perceptron, built without a dense matrix at any time."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [ow.SparseLinear(inputs, outputs, sparsity=sparsity), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def peak(form: str, sizes: list[int], sparsity: float, optimizer: str, batch: int) -> int:
    """Bytes that training took at most."""
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    small = nn.Linear(1024, 1024)  # libraries and thread pools get their memory first
    warm = classes[optimizer](small.parameters(), lr=1e-3)
    step(small, warm, torch.zeros(batch, 1024), torch.zeros(batch, dtype=torch.int64))
    little = stored([64, 64, 10], 0.5)
    ow.attach(little, classes[optimizer](little.parameters(), lr=1e-3), method(0.5))
    little(torch.zeros(4, 64)).sum().backward()
    del small, warm, little
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    model = stored(sizes, sparsity) if form == "stored" else mlp(sizes)
    trained = classes[optimizer](model.parameters(), lr=1e-3)
    if form != "dense":
        ow.attach(model, trained, method(sparsity))
    x, y = torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))
    for _ in range(3):
        step(model, trained, x, y)
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="adam")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [784, options.width, options.width, 10]
    predicted = ow.training_memory(
        mlp(sizes),
        method(options.sparsity),
        torch.zeros(1, 784),
        batch=options.batch,
        optimizer=options.optimizer,
    )
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(
        2**16
    )  # what is freed goes back at once: nothing but the program is measured
    results = []
    for form in FORMS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(peak, (form, sizes, options.sparsity, options.optimizer, options.batch))
        results.append({"form": form, "predicted": predicted.forms[form].peak, "measured": measured})
    if options.json:
        json.dump({**vars(options), "results": results}, sys.stdout)
        return
    print(predicted)
    for r in results:
        ratio = r["measured"] / r["predicted"]
        print(
            f"{r['form']:7} predicted {r['predicted'] / 2**20:8.1f} MiB, measured {r['measured'] / 2**20:8.1f}  {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
