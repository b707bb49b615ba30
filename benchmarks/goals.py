"""What the kernels were hoped to reach on two cores, and what they reach here.

Each goal is a ratio of times, sparse against the fastest dense contender of the same run: PyTorch's own product, oneDNN with
prepacked weights, a 1x1 convolution, and with `--compiled` what torch.compile makes of the product. Contenders take turns
(`kernels.measure`): hot ones use the same weights again and again, cold ones take turns among copies that no cache holds
together. A goal of the form "GF" is useful work instead, 2 x kept x batch a second.

The goals were set on a faster chip of the same family, with twice the multiply-adds a cycle. What this machine can do at most is
printed first. How long its two cores take to hand data to one another may change while a virtual machine runs, so it is printed
for every part.

    python benchmarks/goals.py [--only linear] [--rounds 15] [--compiled] [--name goals]
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from kernels import DENSE, Call, Problem, measure, problem
from torch import Tensor

from openwork import pattern
from openwork.compare.machine import machine
from openwork.compare.roofline import handover, roof
from openwork.kernels import products as kernel
from openwork.kernels.frozen import freeze, frozen_linear_tiles
from openwork.kernels.linear import prepare
from openwork.kernels.tiles import pack_tiles
from openwork.layouts.conv import convolution_of
from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense
from openwork.layouts.layout import layouts
from openwork.pack.conv import ConvTrial

LAST_LEVEL = 64 << 20
"""Bytes that no cache here holds."""

HOPED = {0.5: (1.35, 1.5), 0.75: (2.1, 2.3), 0.9: (4.5, 5.0), 0.95: (7.0, 8.5), 0.99: (15.0, 30.0)}
"""Sparsity -> ratio hoped for, row-major and from tiles to tiles."""


@dataclass
class Goal:
    """A case and what was hoped for.

    Attributes:
        name: of the case.
        hoped: ratio to the fastest dense contender, or useful GFLOP/s.
        unit: `x` or `GF`.
        dense: contenders that compute with all weights.
        sparse: those of openwork; the fastest counts.
        work: useful operations in a call.
    """

    name: str
    hoped: float
    unit: str
    dense: dict[str, Call]
    sparse: dict[str, Call]
    work: float


def dense_contenders(p: Problem, compiled: bool) -> dict[str, Call]:
    calls = {name: maker(p) for name, maker in DENSE.items()}
    if compiled:
        torch._dynamo.reset()
        product = torch.compile(lambda x: F.linear(x, p.weight), options={"freezing": True})
        product(p.x)
        calls["torch.compile"] = lambda: product(p.x)
    return calls


def linear(compiled: bool) -> Iterator[Goal]:
    """From PyTorch's [batch, features] to the same, and from tiles to tiles."""
    for batch in (64, 256, 1024):
        for sparsity, (rows, tiles) in HOPED.items():
            p = problem(1024, 1024, batch, sparsity, seed=0)
            dense, work = dense_contenders(p, compiled), 2 * p.values.numel() * batch
            frozen, packed = freeze(p.values, prepare(p.crow, p.col, tuple(p.weight.shape))), pack_tiles(p.x)
            name = f"linear 1024x1024, batch {batch}, {sparsity:.0%}"
            yield Goal(name, rows, "x", dense, in_layouts(p, CSR.from_mask(p.weight != 0)), work)
            chained = {"tiles": bound(frozen_linear_tiles, packed, frozen)}
            yield Goal(f"{name}, in tiles", tiles, "x", dense, chained, work)


def bound(function: Callable[..., Tensor], *arguments: object) -> Call:
    return lambda: function(*arguments)


def chosen(outputs: int, inputs: int, batch: int, sparsity: float, spelling: str) -> tuple[Problem, CSR]:
    """A problem whose mask has a pattern."""
    p = problem(outputs, inputs, batch, 0.0, seed=0)
    mask = pattern(spelling).choose(torch.rand_like(p.weight), round((1 - sparsity) * p.weight.numel()))
    topology = CSR.from_mask(mask)
    return Problem(p.x, p.weight * mask, topology.crow, topology.col, p.weight[mask]), topology


def in_layouts(p: Problem, topology: CSR) -> dict[str, Call]:
    """Every sparse layout of float32 that suits."""
    batch = p.x.shape[0]
    found = {}
    for cls in layouts(torch.float32):
        if not issubclass(cls, Dense) and cls.unsuited(topology, p.values, batch) is None:
            found[cls.name] = bound(cls.build(topology, p.values, batch).linear, p.x, None, "none")
    return found


def patterns(compiled: bool) -> Iterator[Goal]:
    """Patterns, and small batches."""
    for spelling, sparsity, batch, hoped in (
        ("block 4x1", 0.9, 256, 9.0),
        ("2:4", 0.5, 256, 1.9),
        ("unstructured", 0.9, 1, 2.0),
        ("unstructured", 0.9, 8, 4.0),
    ):
        p, topology = chosen(1024, 1024, batch, sparsity, spelling)
        name = f"{spelling} 1024x1024, batch {batch}, {sparsity:.0%}"
        yield Goal(
            name,
            hoped,
            "x",
            dense_contenders(p, compiled),
            in_layouts(p, topology),
            2 * topology.kept * batch,
        )


def from_memory(compiled: bool) -> Iterator[Goal]:
    """One sample, with weights that come from memory in every call."""
    outputs = inputs = 4096
    p, topology = chosen(outputs, inputs, 1, 0.9, "unstructured")
    weights = [p.weight.clone() for _ in range(2)]
    dense = {
        name: in_turn([maker(Problem(p.x, w, p.crow, p.col, p.values)) for w in weights])
        for name, maker in DENSE.items()
    }
    sparse = {}
    for cls in layouts(torch.float32):
        if not issubclass(cls, Dense) and cls.unsuited(topology, p.values, 1) is None:
            nbytes = cls.build(topology, p.values, 1).nbytes
            held = [cls.build(topology, p.values, 1) for _ in range(max(2, 2 * LAST_LEVEL // nbytes))]
            sparse[cls.name] = in_turn([bound(one.linear, p.x, None, "none") for one in held])
    yield Goal(
        "unstructured 4096x4096, batch 1, 90%, from memory", 6.0, "x", dense, sparse, 2 * topology.kept
    )


def in_turn(calls: list[Call]) -> Call:
    turn = cycle(calls)

    def call() -> Tensor:
        return next(turn)()

    return call


def gradients(compiled: bool) -> Iterator[Goal]:
    """DW at the nonzeros, from tiles."""
    for sparsity, hoped in ((0.5, 250.0), (0.75, 240.0), (0.9, 200.0), (0.95, 170.0), (0.99, 120.0)):
        p = problem(1024, 1024, 256, sparsity, seed=0)
        prepared = prepare(p.crow, p.col, tuple(p.weight.shape))
        x, dy = pack_tiles(p.x), pack_tiles(torch.randn(256, 1024))
        call = bound(values_gradient, x, dy, prepared.walk)
        yield Goal(
            f"dW at nonzeros, batch 256, {sparsity:.0%}",
            hoped,
            "GF",
            {},
            {"tiles": call},
            2 * p.values.numel() * 256,
        )


def values_gradient(x: Tensor, dy: Tensor, walk: list[Tensor]) -> Tensor:
    found = kernel.run_gradients(x, dy, walk, (False, True, False))[1]
    assert found is not None
    return found


def convolutions(compiled: bool) -> Iterator[Goal]:
    """3 x 3, 16 images, the four sizes of a ResNet."""
    for channels, size, hoped in ((64, 56, 3.5), (128, 28, 4.0), (256, 14, 4.5), (512, 7, 5.0)):
        yield convolution(channels, size, hoped)


def convolution(channels: int, size: int, hoped: float) -> Goal:
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    generator = torch.Generator().manual_seed(0)
    conv.weight.data *= torch.rand(conv.weight.shape, generator=generator) >= 0.9
    kept = int(conv.weight.count_nonzero())
    topology = CSR.from_mask(conv.weight.flatten(1) != 0)
    weights = (topology, conv.weight.detach()[conv.weight != 0], None)
    trial = ConvTrial(convolution_of(conv), weights, (16, size, size))
    calls = {name: trial.call(trial.hold(name)) for name in trial.forms()}
    dense = {name: call for name, call in calls.items() if trial.forms()[name]}
    sparse = {name: call for name, call in calls.items() if not trial.forms()[name]}
    name = f"3x3 convolution {channels}, {size}x{size}, 16 images, 90%"
    return Goal(name, hoped, "x", dense, sparse, 2 * kept * 16 * size * size)


KINDS = {
    "linear": linear,
    "patterns": patterns,
    "memory": from_memory,
    "gradients": gradients,
    "convolutions": convolutions,
}


@dataclass
class Reached:
    """What was measured for a goal; times are medians in seconds, with quartiles, `disturbed` as `kernels.measure` says."""

    name: str
    hoped: float
    unit: str
    reached: float
    gflops: float
    sparse: str
    seconds: tuple[float, float, float]
    dense: str | None
    dense_seconds: tuple[float, float, float] | None
    disturbed: bool

    @property
    def verdict(self) -> str:
        share = self.reached / self.hoped
        return "reached" if share >= 1 else f"missed, {share:.2f} of it"


def judged(goal: Goal, rounds: int) -> Reached:
    found = measure({**goal.dense, **goal.sparse}, rounds, 0.004)
    times = {name: spread(seconds) for name, (seconds, _) in found.items()}
    ours = min(goal.sparse, key=lambda name: times[name][1])
    theirs = min(goal.dense, key=lambda name: times[name][1], default=None)
    gflops = 1e-9 * goal.work / times[ours][1]
    return Reached(
        goal.name, goal.hoped, goal.unit, gflops if theirs is None else times[theirs][1] / times[ours][1], gflops,
        ours, times[ours], theirs, None if theirs is None else times[theirs],
        any(found[name][1] for name in (ours, theirs) if name is not None),
    )  # fmt: skip


def told(found: Reached) -> str:
    """A line of the table."""
    mark, reached = "!" if found.disturbed else " ", f"{found.reached:.2f} of {found.hoped:g} {found.unit}"
    dense = "" if found.dense_seconds is None else f", {found.dense} {found.dense_seconds[1] * 1e3:.3f} ms"
    ours = f"{found.seconds[1] * 1e3:9.3f} ms {found.gflops:5.0f} GF  {found.sparse}"
    return f"{mark} {found.name:58}{reached:20}{found.verdict:22}{ours}{dense}"


def spread(seconds: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(seconds, n=4)
    return low, median, high


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", choices=list(KINDS), nargs="+", default=list(KINDS))
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--compiled", action="store_true", help="torch.compile as a dense contender too")
    options.add_argument("--name", default="goals", help="of the file of results")
    given = options.parse_args()
    limits, apart = roof(), [handover()]
    print(machine())
    if limits is not None:
        print(f"at most {limits.gflops:.0f} GFLOP/s")
    results = []
    for kind in given.only:
        with torch.inference_mode():
            for goal in KINDS[kind](given.compiled):
                found = judged(goal, given.rounds)
                results.append({**asdict(found), "verdict": found.verdict})
                print(told(found))
        apart.append(handover())
    print("nanoseconds from core to core: " + ", ".join(f"{seconds * 1e9:.0f}" for seconds in apart))
    date = datetime.now(UTC).date().isoformat()
    result = {
        "claim": "the kernels reach what they were hoped to reach",
        "date": date,
        "machine": asdict(machine()),
        "roof": None if limits is None else asdict(limits),
        "handovers": apart,
        "goals": results,
    }
    (Path(__file__).parent / "results" / f"{date}-{given.name}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
