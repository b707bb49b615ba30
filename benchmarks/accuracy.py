"""How good are networks trained on kept connections alone, beside dense ones and random topologies of equal size?

Fashion-MNIST (and CIFAR-10 where its files are), a perceptron, seeds in which topology, weights and order of data differ; equal
steps for all. `dense, narrow` is a dense perceptron with as many parameters as the sparse ones. The accuracy is that of the test
split after the last step; nothing is chosen by it.

    python benchmarks/accuracy.py [--task fashion_mnist] [--width 500] [--sparsity 0.95] [--epochs 4]
        [--rate 0.1] [--seeds 3] [--json]
"""

import argparse
import json
import statistics
import sys
import time

import torch
from torch import nn

import openwork as ow
from openwork import tasks
from openwork.tasks.mlp import mlp
from openwork.tasks.training import evaluate, fit

BATCH = 128


def narrow(sizes: list[int], parameters: int) -> list[int]:
    """The widest dense perceptron of the same depth with no more parameters."""
    width = 1
    while (
        sum(p.numel() for p in mlp([sizes[0], *[width + 1] * (len(sizes) - 2), sizes[-1]]).parameters())
        <= parameters
    ):
        width += 1
    return [sizes[0], *[width] * (len(sizes) - 2), sizes[-1]]


def contenders(sparsity: float, steps: int) -> dict[str, ow.Method | None]:
    options = {"sparsity": sparsity, "steps": steps}
    return {
        "dense": None,
        "dense, narrow": None,
        "static random": ow.StaticRandom(**options),
        "SET": ow.SET(**options, every=50, until=0.75),
        "RigL": ow.RigL(**options, every=50),
        "GSE": ow.GSE(**options, every=50, until=0.75),
    }


def train(
    name: str,
    method: ow.Method | None,
    sizes: list[int],
    kept: int,
    task: tasks.Task,
    epochs: int,
    rate: float,
    seed: int,
):
    model: nn.Module = mlp(narrow(sizes, kept) if name == "dense, narrow" else sizes, seed=seed)
    if method is not None:
        method = type(method)(**{**vars(method), "seed": seed})
        ow.to_sparse_(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    if method is not None:
        ow.attach(model, optimizer, method)
    steps = epochs * -(-len(task.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    run = fit(
        model, task, optimizer=optimizer, epochs=epochs, batch_size=BATCH, seed=seed, scheduler=schedule
    )
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "seed": seed,
        "accuracy": evaluate(model, task.test).accuracy,
        "seconds": run.seconds,
        "parameters": parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion_mnist")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--rate", type=float, default=0.1, help="learning rate, falling to zero along a cosine"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    task = tasks.get(options.task)
    sizes = [task.train.inputs[0].numel(), options.width, options.width, len(task.classes)]
    steps = options.epochs * -(-len(task.train) // BATCH)
    methods = contenders(options.sparsity, steps)
    like = mlp(sizes)
    ow.to_sparse_(like, methods["static random"])
    kept = sum(p.numel() for p in like.parameters())
    results = {}
    for name, method in methods.items():
        if options.only and options.only not in name:
            continue
        begin = time.perf_counter()
        runs = [
            train(name, method, sizes, kept, task, options.epochs, options.rate, seed)
            for seed in range(options.seeds)
        ]
        results[name] = runs
        if not options.json:
            found = [run["accuracy"] for run in runs]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            print(
                f"{name:15} {runs[0]['parameters']:>8} parameters  test accuracy {statistics.mean(found):.4f} +- {spread:.4f}  "
                f"{time.perf_counter() - begin:.0f} s",
                flush=True,
            )
    if options.json:
        json.dump({**vars(options), "results": results}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
