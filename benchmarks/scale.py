"""How large a network can be trained here when only its connections exist?

A perceptron with a million hidden neurons, two hidden layers, learns Fashion-MNIST by SET. No dense matrix is allocated at any
time; what one would take is printed beside what was used. `--largest` finds the widest hidden layer, in powers of two, of which
two training steps, with an update of the topology each, fit into the memory and the time that are allowed; every width is tried
in a process of its own.

Tensors of that size are made from memory that was freed before (`openwork.keep_freed_memory`), in large pages.

    python benchmarks/scale.py [--hidden 500000,500000] [--fan-in 8] [--epochs 2] [--examples 60000] [--largest] [--json]
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault(
    "THP_MEM_ALLOC_ENABLE", "1"
)  # large pages; read when PyTorch allocates for the first time

import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork import tasks
from openwork.tasks.training import evaluate

JUDGED = 1000
"""Examples of the validation split that the accuracy after an epoch is of."""


@dataclass
class Epoch:
    number: int
    seconds: float  # training and topology updates, without evaluation
    processor: float  # seconds of all threads, which do not depend on who else is computing
    updates: float  # seconds of the topology updates among them
    accuracy: float  # on a part of the validation split
    resident: int  # bytes, the most so far


def network(sizes: list[int], fan_in: int, seed: int = 0) -> nn.Sequential:
    """A perceptron whose units have `fan_in` random inputs on average; outputs read every sixteenth neuron or so."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        kept = min(fan_in * outputs, inputs * outputs)
        layers += [ow.SparseLinear(inputs, outputs, kept=kept, generator=generator), nn.ReLU()]
    last = max(1000, sizes[-2] // 16) * sizes[-1]
    layers.append(
        ow.SparseLinear(sizes[-2], sizes[-1], kept=min(last, sizes[-2] * sizes[-1]), generator=generator)
    )
    return ow.chain_(nn.Sequential(*layers))


def resident() -> int:
    """Most bytes of this process that were in memory at one time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def available() -> int:
    """Bytes that programs can still get."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def dense_bytes(sizes: list[int]) -> int:
    """Weights, gradients and momentum of the same network with dense matrices, float32."""
    return 3 * 4 * sum(a * b + b for a, b in itertools.pairwise(sizes))


def learn(sizes: list[int], fan_in: int, batch: int, epochs: int, examples: int, talk: bool) -> list[Epoch]:
    ow.keep_freed_memory()
    task = tasks.get("fashion_mnist")
    judged = task.validation.subset(torch.arange(min(JUDGED, len(task.validation))))
    train = task.train.subset(torch.arange(min(examples, len(task.train))))
    model = network(sizes, fan_in)
    steps_an_epoch = -(-len(train) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = ow.SET(steps=epochs * steps_an_epoch, every=steps_an_epoch)
    sparsifier = ow.attach(model, optimizer, method)
    generator = torch.Generator().manual_seed(0)
    updates, update = [0.0], sparsifier._update

    def timed() -> None:
        begin = time.perf_counter()
        update()
        updates[0] += time.perf_counter() - begin

    sparsifier._update = timed
    found = []
    for number in range(1, epochs + 1):
        begin, busy, updates[0] = time.perf_counter(), time.process_time(), 0.0
        for part in torch.randperm(len(train), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(train.inputs[part]), train.targets[part]).backward()
            optimizer.step()
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        accuracy = evaluate(model, judged, batch_size=batch).accuracy
        found.append(Epoch(number, seconds, busy, updates[0], accuracy, resident()))
        if talk:
            print(
                f"  epoch {number}: {seconds:.1f} s ({busy:.1f} s of processor time), of it {updates[0]:.2f} s for the "
                f"topology; validation accuracy {accuracy:.4f}; resident {resident() / 2**20:.0f} MiB",
                flush=True,
            )
    return found


def attempt(width: int, fan_in: int, batch: int) -> tuple[float, int]:
    """Seconds of a training step, topology update included, and the most bytes in memory, with two layers of `width`."""
    ow.keep_freed_memory()
    model = network([784, width, width, 10], fan_in)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ow.attach(model, optimizer, ow.SET(steps=3, every=1))
    x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
    for _ in range(2):
        begin = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds = time.perf_counter() - begin
    return seconds, resident()


def largest(fan_in: int, batch: int, seconds: float, talk: bool) -> dict[str, float] | None:
    """The widest that is done in so many seconds; None if not even the first is."""
    found, width = None, 2**19
    # Connections with their indices and what an update needs; activations and their gradients.
    while 80 * fan_in * 2 * width + 5 * 4 * batch * width < 0.7 * available():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            try:
                step, taken = pool.apply_async(attempt, (width, fan_in, batch)).get(timeout=seconds)
            except multiprocessing.TimeoutError:
                break
        dense = dense_bytes([784, width, width, 10])
        found = {"width": width, "step": step, "resident": taken, "dense_bytes": dense}
        if talk:
            print(
                f"  two layers of {width} neurons: {step:.1f} s a step with an update, resident {taken / 2**30:.1f} GiB; "
                f"dense {dense / 2**30:.0f} GiB",
                flush=True,
            )
        width *= 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", default="500000,500000")
    parser.add_argument("--fan-in", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=60000)
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--largest-seconds", type=float, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [784, *map(int, options.hidden.split(",")), 10]
    model = network(sizes, options.fan_in)
    kept = sum(layer.weight_values.numel() for layer in model if isinstance(layer, ow.SparseLinear))
    del model
    result = {
        **vars(options), "threads": torch.get_num_threads(), "sizes": sizes, "kept": kept,
        "dense_bytes": dense_bytes(sizes), "epochs": [], "largest": None,
    }  # fmt: skip
    if not options.json:
        print(
            f"{sum(sizes[1:-1])} hidden neurons, {kept} connections; dense weights, gradients and momentum would take "
            f"{dense_bytes(sizes) / 2**30:.0f} GiB",
            flush=True,
        )
    epochs: list[Epoch] = []
    if options.epochs:
        epochs = learn(
            sizes, options.fan_in, options.batch, options.epochs, options.examples, not options.json
        )
    result["epochs"] = [asdict(epoch) for epoch in epochs]
    if options.largest:
        result["largest"] = largest(options.fan_in, options.batch, options.largest_seconds, not options.json)
    if options.json:
        json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
