"""What does an update of the topology cost, in training steps?

One square hidden layer that holds only its kept connections, trained by Adam with a topology update every few steps; medians,
on a machine that does nothing else. The update of a dense gradient (RigL) includes the dense product, which is given alone as
well.

    python benchmarks/rewiring.py [--kept 1000000] [--sparsity 0.95] [--batch 128] [--threads 1] [--json]
"""

import argparse
import json
import statistics
import sys
import time

import torch

import openwork as ow


def measure(method: ow.Method, width: int, kept: int, batch: int, rounds: int) -> tuple[float, float]:
    """Seconds of a step without an update, and what an update adds to one."""
    generator = torch.Generator().manual_seed(0)
    layer = ow.SparseLinear(width, width, kept=kept, generator=generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    model = torch.nn.Sequential(layer)
    ow.attach(model, optimizer, method)
    x = torch.randn(batch, width, generator=generator).requires_grad_()
    plain, updating = [], []
    for step in range(1, rounds * method.every + 1):
        begin = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        seconds = time.perf_counter() - begin
        (updating if method.due(step) else plain).append(seconds)
    # What is derived from the indices is made in the step after an update: the first of the plain ones is dearer.
    after = sum(plain[method.every - 1 :: method.every - 1]) / (rounds - 1) - statistics.median(plain)
    return statistics.median(plain), statistics.median(updating) + max(0.0, after) - statistics.median(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=int, default=10**6)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width = round((options.kept / (1 - options.sparsity)) ** 0.5)
    schedule = {"steps": 10**4, "every": 6}
    methods = {
        "SET": ow.SET(**schedule),
        "SET by magnitude": ow.SET(**schedule, drop_by="magnitude"),
        "GSE": ow.GSE(**schedule, replace=False, drop=0.3),
        "RigL": ow.RigL(**schedule, replace=False, drop=0.3),
    }
    x, dy = torch.randn(options.batch, width), torch.randn(options.batch, width)
    alone = []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        for first in range(0, width, 512):
            dy[:, first : first + 512].T @ x
        alone.append(time.perf_counter() - begin)
    dense = statistics.median(alone)
    results = {
        "width": width,
        "kept": options.kept,
        "batch": options.batch,
        "threads": options.threads,
        "dense_gradient": dense,
        "methods": {},
    }
    if not options.json:
        print(
            f"{width} x {width}, {options.kept} kept, batch {options.batch}; the dense gradient alone {dense * 1e3:.0f} ms"
        )
    for name, method in methods.items():
        step, update = measure(method, width, options.kept, options.batch, options.rounds)
        results["methods"][name] = {"step": step, "update": update}
        if not options.json:
            print(
                f"  {name:18} step {step * 1e3:6.1f} ms   update {update * 1e3:6.1f} ms = {update / step:5.1f} steps"
            )
    if options.json:
        json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
