"""Does training take the memory that was predicted? Each form trains in a process of its own.

The peak of the resident memory, from before the model was built to after a few steps, is compared with
`openwork.training_memory`.

    python benchmarks/memory.py [--width 4096] [--sparsity 0.9] [--optimizer adam] [--method set]
        [--convolutions] [--json]
"""

import argparse
import dataclasses
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
    return nn.Sequential(*layers[:-1])


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
    before = resident("VmRSS")
    if sizes:
        model = stored(sizes, sparsity) if form == "stored" else mlp(sizes)
        x = torch.randn(batch, sizes[0])
    else:
        model, x = convolutions(), torch.randn(batch, 3, 32, 32)
        if form == "stored":
            ow.to_sparse_(model, method(name, sparsity))
            gc.collect()
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # the dense layers it was made of are no part of training
    trained = classes[optimizer](model.parameters(), lr=1e-3)
    if form != "dense":
        ow.attach(model, trained, method(name, sparsity))
    y = torch.randint(10, (batch,))
    for _ in range(4):
        step(model, trained, x, y)
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--method", choices=METHODS, default="static_random")
    parser.add_argument("--convolutions", action="store_true", help="a network of convolutions instead")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="adam")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [] if options.convolutions else [784, options.width, options.width, 10]
    predicted = ow.training_memory(
        mlp(sizes) if sizes else convolutions(),
        method(options.method, options.sparsity),
        torch.zeros(1, 784) if sizes else torch.zeros(1, 3, 32, 32),
        batch=options.batch,
        optimizer=options.optimizer,
    )
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(
        2**16
    )  # what is freed goes back at once: nothing but the program is measured
    results = []
    for form in FORMS:
        if form == "stored" and METHODS[options.method].latent:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(
                peak, (form, options.method, sizes, options.sparsity, options.optimizer, options.batch)
            )
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
