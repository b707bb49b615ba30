"""Are the sparse kernels faster than the best dense ones on this machine, and from which sparsity on?

Every contender computes the same Y = X W^T from PyTorch tensors to PyTorch tensors. They take turns in one
process, each sample is a few milliseconds of calls on the same weights (hot), samples during which the
process was descheduled are left out, and the median and the quartiles of the rest are shown. A contender that
is wrong is not timed. The ratio is against the fastest dense contender of the same run.

    python benchmarks/kernels.py --shape 1024x1024 --batch 64,256 --sparsity 0.5,0.75,0.9,0.95,0.99 [--threads
    2] [--json]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.kernels import isa
from openwork.kernels.frozen import freeze, frozen_linear
from openwork.kernels.linear import prepare, sparse_linear

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    x: Tensor  # [batch, inputs]
    weight: Tensor  # [outputs, inputs], mostly zeros
    crow: Tensor
    col: Tensor
    values: Tensor


def problem(outputs: int, inputs: int, batch: int, sparsity: float, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(outputs, inputs, generator=generator) >= sparsity
    weight = torch.randn(outputs, inputs, generator=generator) * mask
    crow = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).to(torch.int32)
    col = mask.nonzero()[:, 1].to(torch.int32)
    return Problem(torch.randn(batch, inputs, generator=generator), weight, crow, col, weight[mask])


def torch_default(p: Problem) -> Call:
    return lambda: F.linear(p.x, p.weight)


def onednn_prepacked(p: Problem) -> Call:
    packed = torch.ops.mkldnn._reorder_linear_weight(p.weight, p.x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(p.x, packed, None, "none", [], "")


def convolution_1x1(p: Problem) -> Call:
    x = p.x[:, :, None, None].contiguous(memory_format=torch.channels_last)
    weight = p.weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight)[:, :, 0, 0]


def torch_sparse(p: Problem) -> Call:
    csr = torch.sparse_csr_tensor(p.crow, p.col, p.values, p.weight.shape)

    def call() -> Tensor:
        return (csr @ p.x.T).T.contiguous()

    return call


def scipy_sparse(p: Problem) -> Call:
    csr = scipy.sparse.csr_array(
        (p.values.numpy(), p.col.numpy(), p.crow.numpy()), shape=tuple(p.weight.shape)
    )
    x = p.x.numpy()
    return lambda: torch.from_numpy((csr @ x.T).T.copy())


def openwork(p: Problem) -> Call:
    prepared = prepare(p.crow, p.col, tuple(p.weight.shape))
    return lambda: sparse_linear(p.x, p.values, prepared)


def openwork_frozen(p: Problem) -> Call:
    frozen = freeze(p.values, prepare(p.crow, p.col, tuple(p.weight.shape)))
    return lambda: frozen_linear(p.x, frozen)


DENSE = {
    "torch default": torch_default,
    "oneDNN prepacked": onednn_prepacked,
    "1x1 convolution": convolution_1x1,
}
SPARSE = {
    "torch sparse CSR": torch_sparse,
    "SciPy CSR": scipy_sparse,
    "openwork": openwork,
    "openwork frozen": openwork_frozen,
}


@dataclass
class Timing:
    contender: str
    median: float  # seconds
    quartiles: tuple[float, float]
    samples: int
    disturbed: bool  # too few samples ran without being descheduled: not a measurement of the kernel
    error: float  # largest, relative to the largest output
    ratio: float = 0.0  # best dense median / this median


def measure(
    calls: dict[str, Call], rounds: int, sample_seconds: float
) -> dict[str, tuple[list[float], bool]]:
    """Seconds per call of the clean samples, contenders taking turns; all samples and True if few were clean."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        repeats[name] = max(1, round(sample_seconds / (time.perf_counter() - begin)))
    clean: dict[str, list[float]] = {name: [] for name in calls}
    every: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # wakes the threads, fills the caches
            switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds = (time.perf_counter() - begin) / repeats[name]
            every[name].append(seconds)
            if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switches:
                clean[name].append(seconds)
    enough = max(5, rounds // 2)
    return {
        name: (clean[name], False) if len(clean[name]) >= enough else (every[name], True) for name in calls
    }


def compare(p: Problem, rounds: int, sample_seconds: float, only: str | None) -> list[Timing]:
    makers = {
        name: maker
        for name, maker in {**DENSE, **SPARSE}.items()
        if name in DENSE or not only or only in name
    }
    calls = {name: maker(p) for name, maker in makers.items()}
    expected = p.x.double() @ p.weight.double().T
    scale = float(expected.abs().max()) or 1.0
    errors = {name: float((call().double() - expected).abs().max()) / scale for name, call in calls.items()}
    wrong = {name: error for name, error in errors.items() if not error < 1e-4}
    if wrong:
        raise SystemExit(f"wrong results, nothing timed: {wrong}")
    timings = []
    for name, (seconds, disturbed) in measure(calls, rounds, sample_seconds).items():
        low, median, high = statistics.quantiles(seconds, n=4)
        timings.append(Timing(name, median, (low, high), len(seconds), disturbed, errors[name]))
    best = min(timing.median for timing in timings if timing.contender in DENSE)
    for timing in timings:
        timing.ratio = best / timing.median
    return timings


def machine() -> dict[str, str | int | float]:
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models),
        "threads": torch.get_num_threads(),
        "level": isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1024x1024", help="outputs x inputs")
    parser.add_argument("--batch", type=numbers, default=[64, 256])
    parser.add_argument("--sparsity", type=numbers, default=[0.5, 0.75, 0.9, 0.95, 0.99])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--sample-ms", type=float, default=4.0)
    parser.add_argument("--only", help="of the sparse contenders, those whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    outputs, inputs = (int(side) for side in options.shape.split("x"))

    results = []
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for batch in options.batch:
        for sparsity in options.sparsity:
            p = problem(outputs, inputs, int(batch), sparsity, options.seed)
            with torch.inference_mode():
                timings = compare(p, options.rounds, options.sample_ms / 1000, options.only)
            case = {
                "outputs": outputs,
                "inputs": inputs,
                "batch": int(batch),
                "sparsity": sparsity,
                "seed": options.seed,
            }
            results.append({**case, "timings": [asdict(timing) for timing in timings]})
            if options.json:
                continue
            print(f"\n{outputs}x{inputs}, batch {int(batch)}, sparsity {sparsity}, kept {p.values.numel()}")
            for timing in sorted(timings, key=lambda timing: timing.median):
                low, high = timing.quartiles
                gflops = 2e-9 * p.values.numel() * batch / timing.median if timing.contender in SPARSE else 0
                useful = f"{gflops:7.0f} GF" if gflops else " " * 10
                mark = "!" if timing.disturbed else " "
                spread = f"{timing.median * 1e6:10.1f} us  [{low * 1e6:.1f} ... {high * 1e6:.1f}]"
                against = f"{timing.ratio:8.2f} x best dense, error {timing.error:.0e}"
                print(f"{mark} {timing.contender:18}{spread}{useful}{against}")
    if any(timing["disturbed"] for result in results for timing in result["timings"]):
        print(
            "Lines marked ! were disturbed by other processes: repeat them on a quiet machine.",
            file=sys.stderr,
        )
    if options.json:
        json.dump({"machine": machine(), "results": results}, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
