"""Whole networks through `pack_`, and the same network dense beside it: is the whole faster, not only a layer?

Contenders take turns, medians and quartiles are shown: the network as PyTorch runs it with its zeros, the same network
unpruned and packed (every layer on the fastest dense kernel at hand, norms and activations fused), and pruned and packed. The
unpruned network compiled by torch.compile (frozen; for images norms folded, channels last) is timed by itself, and so is the
packed one for that comparison ("alone"). The ratio is the smaller one, against the fastest dense contender.
Weights are random and so are the masks: speed does not ask what a network has learned. Each instruction set level runs in a
process of its own; for the lower ones torch is limited too, by ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA (MKL is not: it
follows neither).

    python benchmarks/networks.py [--levels native avx2 portable] [--seconds 0.5] [--only mlp] [--json]
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.fx.experimental.optimization import fuse
from vision import mobilenet, resnet50

import openwork as ow
from openwork.compare.machine import machine
from openwork.tasks.gpt import gpt_small
from openwork.tasks.mlp import mlp
from openwork.tasks.resnet import resnet20
from openwork.timing import Latency, latencies

HERE = Path(__file__).parent
SPARSITY = 0.9
PACK_SECONDS = 0.1
PATTERNS = ("unstructured", "block 4x1")
LEVEL = os.environ.get("OPENWORK_ISA", "native")
LEVELS = {
    "native": {},
    "avx2": {"OPENWORK_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "portable": {"OPENWORK_ISA": "portable", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


@dataclass(frozen=True)
class Case:
    """A network and what it is called with."""

    network: str
    what: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], torch.Tensor]


def tokens(batch: int, length: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randint(65, (batch, length), generator=generator)


def reals(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


CASES = [
    *(
        Case("mlp 784-1000-1000-10", f"batch {batch}", lambda: mlp((784, 1000, 1000, 10)), reals(batch, 784))
        for batch in (1, 64)
    ),
    Case("gpt_small", "prefill of 128 tokens", gpt_small, tokens(1, 128)),
    Case("gpt_small", "decode of one token", gpt_small, tokens(1, 1)),
    *(
        Case("gpt 768 wide", what, lambda: gpt_small(width=768, heads=12), tokens(1, length))
        for what, length in (("prefill of 128 tokens", 128), ("decode of one token", 1))
    ),
    *(Case("resnet20", f"batch {batch}", resnet20, reals(batch, 3, 32, 32)) for batch in (1, 64)),
    *(Case("resnet50", f"batch {batch}", resnet50, reals(batch, 3, 224, 224)) for batch in (1, 16)),
    *(Case("mobilenet", f"batch {batch}", mobilenet, reals(batch, 3, 224, 224)) for batch in (1, 16)),
]


@dataclass(frozen=True)
class Result:
    """Milliseconds: medians, and quartiles of each contender."""

    network: str
    case: str
    pattern: str
    sparsity: float  # of the prunable weights
    torch_ms: float
    dense_ms: float
    compiled_ms: float | None
    packed_ms: float
    alone_ms: float | None  # packed, timed by itself as compiled is
    quartiles_ms: dict[str, tuple[float, float]]
    layouts: dict[str, int]  # layout -> layers
    whole: str  # how the network runs as a whole
    calm: bool

    @property
    def ratio(self) -> float:
        """How many times faster than the faster of the dense contenders."""
        ratio = min(self.torch_ms, self.dense_ms) / self.packed_ms
        if self.compiled_ms is None or self.alone_ms is None:
            return ratio
        return min(ratio, self.compiled_ms / self.alone_ms)


def sparsify(model: nn.Module, pattern: str) -> float:
    """Set nine of ten weights to zero, in place, but not those of the first convolution, of the last layer, and of
    convolutions in groups.

    A pattern that a layer's shape does not allow is replaced by an unstructured mask.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    kept = total = 0
    generator = torch.Generator().manual_seed(0)
    for i, layer in enumerate(layers):
        weight = layer.weight.data
        rows = weight.flatten(1)
        if i == len(layers) - 1 or (isinstance(layer, nn.Conv2d) and (i == 0 or layer.groups > 1)):
            continue
        scores = torch.rand(rows.shape, generator=generator)
        count = round((1 - SPARSITY) * rows.numel())
        mask = ow.pattern(pattern).choose(scores, count // 4 * 4)
        weight *= mask.view_as(weight)
        kept, total = kept + int(mask.sum()), total + mask.numel()
    return 1 - kept / total


@torch.no_grad()
def measure(case: Case, pattern: str, seconds: float) -> Result:
    dense = case.build().eval()
    inputs = case.inputs(torch.Generator().manual_seed(1))
    sparsity = sparsify(dense, pattern)
    packed = copy.deepcopy(dense)
    decisions = ow.pack_(packed, inputs, seconds=PACK_SECONDS)
    rival = case.build().eval()
    ow.pack_(rival, inputs, seconds=PACK_SECONDS)
    expected = dense(inputs)
    error = float((packed(inputs) - expected).abs().max() / expected.abs().max())
    if not error < 1e-4:
        raise SystemExit(f"{case.network}, {case.what}: wrong by {error:.1e}, nothing timed")
    calls = {"torch": lambda: dense(inputs), "dense": lambda: rival(inputs)}
    calls["packed"] = lambda: packed(inputs)
    found = latencies(calls, seconds=seconds, rounds=5)
    if LEVEL == "native":
        found |= apart({"alone": calls["packed"], "compiled": compiled(case.build().eval(), inputs)}, seconds)
    times = {name: latency.median * 1e3 for name, latency in found.items()}
    chosen: dict[str, int] = {}
    for row in decisions:
        chosen[row.layout] = chosen.get(row.layout, 0) + 1
    return Result(
        case.network,
        case.what,
        pattern,
        sparsity,
        times["torch"],
        times["dense"],
        times.get("compiled"),
        times["packed"],
        times.get("alone"),
        {name: (latency.low * 1e3, latency.high * 1e3) for name, latency in found.items()},
        chosen,
        ", ".join(told.form for told in decisions.whole),
        all(latency.disturbed <= latency.samples for latency in found.values()),
    )


def apart(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Latency]:
    """Each by itself, with all caches warm, the better of two turns: what the compiler makes brings threads of its own, which
    would still be awake when the next one begins.
    """
    best: dict[str, Latency] = {}
    for _ in range(2):
        for name, call in calls.items():
            latency = latencies({name: call}, seconds=seconds / 4, rounds=5)[name]
            best[name] = min(latency, best.get(name, latency), key=lambda one: one.median)
            time.sleep(0.1)
    return best


def compiled(model: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    """A call of the model as the compiler of PyTorch makes it fastest: with frozen weights; images with channels last and norms
    folded beforehand, which for these networks beats channels first (by 2 to 20 %) and norms that the compiler folds (by 2 to 4).
    """
    inductor.freezing = True
    if inputs.dim() == 4:
        model = fuse(model).to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    fast = torch.compile(model, dynamic=False)
    return lambda: fast(inputs)


def results(seconds: float, only: str, patterns: Sequence[str]) -> Iterator[Result]:
    for case in CASES:
        if only not in f"{case.network} {case.what}":
            continue
        for pattern in patterns:
            yield measure(case, pattern, seconds)


def at_level(level: str, seconds: float, only: str, patterns: Sequence[str]) -> dict[str, object]:
    """The same in a process of its own, where everything is limited to a level."""
    command = [
        sys.executable,
        __file__,
        "--here",
        "--seconds",
        str(seconds),
        "--only",
        only,
        "--patterns",
        *patterns,
    ]
    with (
        tempfile.TemporaryDirectory() as cache
    ):  # layers of one shape are measured once, and nothing is known from before
        environment = {**os.environ, **LEVELS[level], "OPENWORK_CACHE": cache}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return {"level": level, "environment": LEVELS[level], **json.loads(done.stdout)}


def show(found: dict[str, object]) -> None:
    print(f"\n{found['level']}: {found['isa']}, torch at {found['torch_capability']}")
    for row in found["results"]:
        low, high = row["quartiles_ms"]["packed"]
        calm = "" if row["calm"] else " (disturbed)"
        alone = "" if row["alone_ms"] is None else f" (alone {row['alone_ms']:.3f})"
        compiled_ms = "" if row["compiled_ms"] is None else f"  compiled {row['compiled_ms']:8.3f}"
        print(
            f"{row['network']:21}{row['case']:22}{row['pattern']:14}torch {row['torch_ms']:8.3f}"
            f"  dense {row['dense_ms']:8.3f}{compiled_ms}  packed {row['packed_ms']:8.3f} [{low:.3f} ... {high:.3f}] ms"
            f"{alone}  {row['ratio']:5.2f}x{calm}  {row['layouts']} {row['whole']}"
        )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--levels", nargs="+", choices=LEVELS, default=["native", "avx2", "portable"])
    options.add_argument("--seconds", type=float, default=0.5, help="for each case")
    options.add_argument("--only", default="", help="networks whose name and case contain this")
    options.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS)
    options.add_argument("--name", default="networks", help="of the file of results")
    options.add_argument("--json", action="store_true")
    options.add_argument("--here", action="store_true", help="only measure this process, and print JSON")
    given = options.parse_args()
    if given.here:
        rows = [
            {**asdict(row), "ratio": row.ratio} for row in results(given.seconds, given.only, given.patterns)
        ]
        capability = torch.backends.cpu.get_cpu_capability()
        print(
            json.dumps(
                {
                    "isa": machine().isa,
                    "torch_capability": capability,
                    "machine": asdict(machine()),
                    "results": rows,
                }
            )
        )
        return
    levels = [at_level(level, given.seconds, given.only, given.patterns) for level in given.levels]
    date = datetime.now(UTC).date().isoformat()
    result = {
        "claim": "whole packed networks are faster than dense ones",
        "date": date,
        "sparsity": SPARSITY,
        "levels": levels,
    }
    path = HERE / "results" / f"{date}-{given.name}.json"
    path.write_text(json.dumps(result, indent=1))
    if given.json:
        json.dump(result, sys.stdout, indent=1)
        return
    print(machine())
    for found in levels:
        show(found)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
