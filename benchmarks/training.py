"""Is a training step on kept connections faster than the best dense one on this machine?

A step is zero_grad, forward, cross entropy, backward and the optimizer, from PyTorch tensors; every network has PyTorch's fused
optimizer, which on small and sparse networks is the faster one by far. Contenders take turns in one
process; medians and quartiles are shown, and the ratio to the fastest dense contender of the same run. Dense contenders are
PyTorch's own linear layers and the same layers written as 1x1 convolutions, which oneDNN computes. Before anything is timed,
the stored and the masked network are proven to have the same loss and gradients. `layers` is the stored network with each layer
by itself, without a chain (openwork.layouts.chain). An end of less than 100 units keeps all its connections in every network; the
stored ones hold it whole, so that the chain goes to the end. Where the time of the stored step goes is told for its parts: sparse
kernels, optimizer (with zero_grad), and the rest, which is PyTorch's other operators, autograd and Python.

    python benchmarks/training.py [--sizes 784,1000,1000,1000,10] [--batch 128] [--sparsity 0.8,0.9,0.95,0.98,0.99]
        [--optimizer sgd,adam] [--threads 2] [--seconds 6] [--json]
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openwork as ow
from openwork.kernels import isa, native
from openwork.layouts.chain import unchain_
from openwork.tasks.mlp import mlp
from openwork.timing import latencies

SMALL_END = 100
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
}


class Step:
    """A training step of a model on one batch, which can tell how long its optimizer took."""

    def __init__(
        self, model: nn.Module, optimizer: str, x: Tensor, y: Tensor, method: ow.StaticRandom | None = None
    ) -> None:
        self.model, self.x, self.y, self.in_optimizer = model, x, y, 0.0
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())
        if method is not None:
            ow.attach(model, self.optimizer, method)

    def __call__(self) -> Tensor:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        cleared = time.perf_counter()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        differentiated = time.perf_counter()
        self.optimizer.step()
        self.in_optimizer = cleared - begin + time.perf_counter() - differentiated
        return loss


class Clock:
    """Stands in for the native kernels and adds up the time in them."""

    def __init__(self, kernels: object) -> None:
        self.kernels, self.seconds = kernels, 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        kernel = getattr(self.kernels, name)

        def timed(*arguments: object) -> None:
            begin = time.perf_counter()
            kernel(*arguments)
            self.seconds += time.perf_counter() - begin

        setattr(self, name, timed)
        return timed


def parts(take: Step, steps: int = 200) -> dict[str, float]:
    """Seconds of a step in the sparse kernels, in the optimizer and in the rest: means over the faster half of the steps."""
    clock, kernels = Clock(native.kernels()), native.kernels
    rows = []
    native.kernels = lambda: clock  # type: ignore[assignment]
    try:
        for _ in range(steps):
            clock.seconds, begin = 0.0, time.perf_counter()
            take()
            whole = time.perf_counter() - begin
            rows.append((whole, clock.seconds, take.in_optimizer))
    finally:
        native.kernels = kernels
    calm = sorted(rows)[: steps // 2]
    whole, inside, optimizer = (sum(column) / len(calm) for column in zip(*calm, strict=True))
    return {"kernels": inside, "optimizer": optimizer, "rest": whole - inside - optimizer}


def as_convolutions(sizes: list[int]) -> nn.Sequential:
    """The perceptron with every linear layer as a 1x1 convolution over one pixel."""
    layers: list[nn.Module] = [nn.Unflatten(1, (sizes[0], 1, 1))]
    for i in range(1, len(sizes)):
        layers += [nn.Conv2d(sizes[i - 1], sizes[i], 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Flatten()).to(memory_format=torch.channels_last)


def same(stored: nn.Module, masked: nn.Module, masks: dict[str, Tensor], x: Tensor, y: Tensor) -> None:
    """Stop unless both networks have the same loss and gradients."""
    losses = [F.cross_entropy(model(x), y) for model in (stored, masked)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    for name, mask in masks.items():
        ours = stored.get_submodule(name.removesuffix(".weight")).weight_values.grad
        torch.testing.assert_close(ours, masked.get_parameter(name).grad[mask], rtol=1e-3, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="784,1000,1000,1000,10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sparsity", default="0.8,0.9,0.95,0.98,0.99")
    parser.add_argument("--optimizer", default="sgd,adam")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="for all contenders of one case")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [int(size) for size in options.sizes.split(",")]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch, sizes[0], generator=generator)
    y = torch.randint(sizes[-1], (options.batch,), generator=generator)
    machine = {
        "processor": platform.processor() or platform.machine(), "level": isa(), "threads": options.threads,
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    results = []
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for optimizer in options.optimizer.split(","):
        for sparsity in map(float, options.sparsity.split(",")):
            end = (f"fc{len(sizes) - 1}.*",) if sizes[-1] < SMALL_END else ()
            method = ow.StaticRandom(sparsity=sparsity, allocation="uniform", exclude=end)
            stored, layers, masked = mlp(sizes), mlp(sizes), mlp(sizes)
            for model in (stored, layers):
                ow.to_sparse_(model, method, whole=end)
            unchain_(layers)
            checked = ow.attach(masked, None, method)
            same(stored, masked, checked.masks, x, y)
            checked.detach()
            contenders = {
                "dense, torch": Step(mlp(sizes), optimizer, x, y),
                "dense, 1x1 convolutions": Step(as_convolutions(sizes), optimizer, x, y),
                "masked": Step(masked, optimizer, x, y, method),
                "layers": Step(layers, optimizer, x, y, method),
                "stored": Step(stored, optimizer, x, y, method),
            }
            times = latencies(contenders, seconds=options.seconds)
            best = min(found.median for name, found in times.items() if name.startswith("dense"))
            spent = parts(contenders["stored"])
            case = {"sizes": sizes, "batch": options.batch, "optimizer": optimizer, "sparsity": sparsity}
            results.append({**case, "parts": spent, "times": {n: asdict(t) for n, t in times.items()}})
            if options.json:
                continue
            print(f"\n{options.sizes}, batch {options.batch}, {optimizer}, sparsity {sparsity}")
            for name, found in times.items():
                print(
                    f"  {name:24}{found.median * 1e3:9.2f} ms  [{found.low * 1e3:.2f} ... {found.high * 1e3:.2f}]"
                    f"{best / found.median:8.2f} x best dense"
                )
            print(
                "  stored: " + ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in spent.items())
            )
    if options.json:
        json.dump({"machine": machine, "results": results}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
