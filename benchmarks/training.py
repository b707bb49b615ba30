"""Is a training step on kept connections faster than the best dense one on this machine?

A step is zero_grad, forward, cross entropy, backward and the optimizer, from PyTorch tensors. Contenders take turns in one
process; medians and quartiles are shown, and the ratio to the fastest dense contender of the same run. Dense contenders are
PyTorch's own linear layers and the same layers written as 1x1 convolutions, which oneDNN computes. Before anything is timed,
the stored and the masked network are proven to have the same loss and gradients.

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
from openwork.kernels import isa, linear
from openwork.tasks.mlp import mlp
from openwork.timing import latencies

Step = Callable[[], Tensor]
OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, lr=1e-3), "adam": lambda p: torch.optim.Adam(p, lr=1e-4)}


def step(
    model: nn.Module, optimizer: str, x: Tensor, y: Tensor, method: ow.StaticRandom | None = None
) -> Step:
    trained = OPTIMIZERS[optimizer](model.parameters())
    if method is not None:
        ow.attach(model, trained, method)

    def take() -> Tensor:
        trained.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        trained.step()
        return loss

    return take


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


def outside_kernels(take: Step, steps: int = 50) -> tuple[float, float]:
    """Seconds of a step, and of these the seconds that are not spent in the sparse kernels; medians."""
    spent = [0.0]
    names = ("run_linear", "_weight_gradient")
    kernels = {name: getattr(linear, name) for name in names}

    def timed(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: object, **options: object) -> Tensor:
            begin = time.perf_counter()
            found = call(*args, **options)
            spent[0] += time.perf_counter() - begin
            return found

        return run

    rows = []
    try:
        for name, kernel in kernels.items():
            setattr(linear, name, timed(kernel))
        for _ in range(steps):
            spent[0] = 0.0
            begin = time.perf_counter()
            take()
            rows.append((time.perf_counter() - begin, spent[0]))
    finally:
        for name, kernel in kernels.items():
            setattr(linear, name, kernel)
    whole, inside = sorted(rows)[len(rows) // 2]
    return whole, whole - inside


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
            method = ow.StaticRandom(
                sparsity=sparsity, allocation="uniform", exclude=(f"fc{len(sizes) - 1}.*",)
            )
            stored, masked = mlp(sizes), mlp(sizes)
            ow.to_sparse_(stored, method)
            checked = ow.attach(masked, None, method)
            same(stored, masked, checked.masks, x, y)
            checked.detach()
            contenders = {
                "dense, torch": step(mlp(sizes), optimizer, x, y),
                "dense, 1x1 convolutions": step(as_convolutions(sizes), optimizer, x, y),
                "masked": step(masked, optimizer, x, y, method),
                "stored": step(stored, optimizer, x, y, method),
            }
            times = latencies(contenders, seconds=options.seconds)
            best = min(found.median for name, found in times.items() if name.startswith("dense"))
            whole, outside = outside_kernels(contenders["stored"])
            case = {"sizes": sizes, "batch": options.batch, "optimizer": optimizer, "sparsity": sparsity}
            results.append(
                {
                    **case,
                    "outside_kernels": outside / whole,
                    "times": {n: asdict(t) for n, t in times.items()},
                }
            )
            if options.json:
                continue
            print(f"\n{options.sizes}, batch {options.batch}, {optimizer}, sparsity {sparsity}")
            for name, found in times.items():
                print(
                    f"  {name:24}{found.median * 1e3:9.2f} ms  [{found.low * 1e3:.2f} ... {found.high * 1e3:.2f}]"
                    f"{best / found.median:8.2f} x best dense"
                )
            print(f"  outside the sparse kernels {outside / whole:.0%} of the stored step")
    if options.json:
        json.dump({"machine": machine, "results": results}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
