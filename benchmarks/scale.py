"""How large a network can be trained here when only its connections exist?

A perceptron with a million hidden neurons, two hidden layers, learns Fashion-MNIST by SET. No dense matrix is allocated at any
time; what one would take is printed beside what was used. `--largest` finds the widest hidden layer, in powers of two, of which
one training step and one topology update fit into the memory and the time that are allowed.

    python benchmarks/scale.py [--hidden 500000,500000] [--fan-in 8] [--epochs 2] [--examples 60000] [--largest] [--json]
"""

import argparse
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork import tasks
from openwork.tasks.training import evaluate


@dataclass
class Epoch:
    number: int
    seconds: float  # training and topology updates, without evaluation
    updates: float  # seconds of the topology updates among them
    accuracy: float  # on the validation split
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
    task = tasks.get("fashion_mnist")
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
        begin, updates[0] = time.perf_counter(), 0.0
        for part in torch.randperm(len(train), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(train.inputs[part]), train.targets[part]).backward()
            optimizer.step()
        seconds = time.perf_counter() - begin
        accuracy = evaluate(model, task.validation, batch_size=batch).accuracy
        found.append(Epoch(number, seconds, updates[0], accuracy, resident()))
        if talk:
            print(
                f"  epoch {number}: {seconds:.1f} s, of it {updates[0]:.2f} s for the topology; validation accuracy "
                f"{accuracy:.4f}; resident {resident() / 2**20:.0f} MiB",
                flush=True,
            )
    return found


def fits(width: int, fan_in: int, batch: int, seconds: float) -> bool:
    """Whether a network with two layers of `width` is built, trained for two steps and rewired in time and in memory."""
    sizes = [784, width, width, 10]
    need = 40 * fan_in * 2 * width + 5 * 4 * 2 * batch * width  # weights, indices and updates; activations
    if need > 0.8 * available():
        return False
    begin = time.perf_counter()
    model = network(sizes, fan_in)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ow.attach(model, optimizer, ow.SET(steps=3, every=1))
    x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return time.perf_counter() - begin < seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", default="500000,500000")
    parser.add_argument("--fan-in", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=60000)
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--largest-seconds", type=float, default=120)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [784, *map(int, options.hidden.split(",")), 10]
    model = network(sizes, options.fan_in)
    kept = sum(layer.weight_values.numel() for layer in model if isinstance(layer, ow.SparseLinear))
    del model
    result = {"sizes": sizes, "kept": kept, "dense_bytes": dense_bytes(sizes), "epochs": [], "largest": None}
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
        width = 2**19
        while fits(2 * width, options.fan_in, options.batch, options.largest_seconds):
            width *= 2
            if not options.json:
                print(
                    f"  two layers of {width} neurons fit: resident {resident() / 2**30:.1f} GiB", flush=True
                )
        result["largest"] = width
    if options.json:
        json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
