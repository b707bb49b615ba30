"""Is a training step of a sparse ResNet-20 faster than the best dense one on this machine?

A step is zero_grad, forward, cross entropy, backward and SGD with momentum on 128 random images of 32 x 32. Contenders take
turns: the dense network with channels first and last, the stored one, and each of them compiled by torch.compile, which fuses the
batch norms and ReLUs that take half of a step.

    python benchmarks/training_images.py [--sparsity 0.95] [--batch 128] [--seconds 20] [--threads 2]
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openwork as ow
from openwork.compare.machine import machine
from openwork.tasks.resnet import resnet20
from openwork.timing import latencies


def step(model: nn.Module, x: Tensor, y: Tensor, *, compiled: bool = False) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    run = torch.compile(model) if compiled else model

    def take() -> None:
        optimizer.zero_grad()
        F.cross_entropy(run(x), y).backward()
        optimizer.step()

    return take


def stored(sparsity: float) -> nn.Module:
    model = resnet20()
    ow.to_sparse_(model, ow.StaticRandom(sparsity=sparsity))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch, 3, 32, 32, generator=generator)
    y = torch.randint(10, (options.batch,), generator=generator)
    last = x.contiguous(memory_format=torch.channels_last)
    contenders = {}
    for compiled in (False, True):
        how = ", compiled" if compiled else ""
        dense, dense_last = resnet20(), resnet20().to(memory_format=torch.channels_last)
        contenders["dense" + how] = step(dense, x, y, compiled=compiled)
        contenders["dense, channels last" + how] = step(dense_last, last, y, compiled=compiled)
        contenders["stored" + how] = step(stored(options.sparsity), x, y, compiled=compiled)
    times = latencies(contenders, seconds=options.seconds)
    best = min(found.median for name, found in times.items() if name.startswith("dense"))
    print(machine())
    for name, found in times.items():
        spread = f"[{found.low * 1e3:.0f} ... {found.high * 1e3:.0f}]"
        print(f"{name:32}{found.median * 1e3:8.1f} ms  {spread:16}{best / found.median:6.2f} x best dense")


if __name__ == "__main__":
    main()
