"""What fewer bits are worth: sparse layers with bfloat16, int8 and 4-bit weights against dense kernels of float32 and bfloat16.

All contenders of a case take turns in one process (`openwork.pack.contest`): every layout that suits at the coarsest precision
allowed, and every dense kernel. The ratios are to the fastest dense kernel in float32, and to the fastest in bfloat16, which
rounds inputs too. Losses are printed as well as wins. Writes a dated file that names the machine; a part that is run again
replaces its rows there.

    python benchmarks/precision.py [--part weights|model|blocks|groups] [--layer 1024x1024] [--seconds 0.5]
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from openwork.compare.machine import machine
from openwork.layouts.csr import CSR
from openwork.layouts.dense import BFloat16OneDNNDense, Dense, OneDNNDense
from openwork.layouts.group_int4 import GroupInt4Linear
from openwork.layouts.layout import layouts
from openwork.pack import contest
from openwork.patterns import pattern
from openwork.timing import latencies

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8, 64, 256)
DENSE = {cls.name: cls.weight_dtype is torch.bfloat16 for cls in layouts() if issubclass(cls, Dense)}

Row = dict[str, object]


def connections(shape: tuple[int, int], spelling: str, sparsity: float) -> tuple[CSR, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kept = round((1 - sparsity) * shape[0] * shape[1])
    topology = CSR.from_mask(pattern(spelling).choose(torch.rand(shape, generator=generator), kept))
    return topology, torch.randn(topology.kept, generator=generator)


def rows_of(case: Row, times: dict[str, float], kept: int) -> Iterator[Row]:
    """One row for each sparse contender; in a bfloat16 model the dense kernels are bfloat16 without saying so."""
    dense = {name: ms for name, ms in times.items() if name in DENSE}
    bf16_model = case["part"] == "model"
    wide = {name: ms for name, ms in dense.items() if not DENSE[name] and not bf16_model}
    narrow = {name: ms for name, ms in dense.items() if DENSE[name] or bf16_model}
    for name, ms in times.items():
        if name in DENSE:
            continue
        row = {**case, "layout": name, "ms": ms, "gflops": 2e-6 * kept * case["batch"] / ms}
        for label, contenders in (("float32", wide), ("bfloat16", narrow)):
            best = min(contenders, key=contenders.__getitem__, default=None)
            row[f"dense_{label}"] = best
            row[f"against_{label}"] = None if best is None else contenders[best] / ms
        yield row


def contested(
    part: str,
    shape: tuple[int, int],
    spelling: str,
    sparsity: float,
    batch: int,
    dtype: torch.dtype,
    seconds: float,
) -> Iterator[Row]:
    topology, values = connections(shape, spelling, sparsity)
    values = values.bfloat16() if part == "model" else values
    times = {
        name: time.median * 1e3 for name, time in contest(topology, values, batch, seconds, dtype).items()
    }
    case = {"part": part, "layer": list(shape), "pattern": spelling, "sparsity": sparsity, "batch": batch}
    yield from rows_of(case, times, topology.kept)


def weights(shape: tuple[int, int], seconds: float) -> Iterator[Row]:
    """float32 models whose weights may be rounded as far as int8."""
    for batch in BATCHES:
        for sparsity in (0.5, 0.75, 0.9, 0.95):
            yield from contested("weights", shape, "unstructured", sparsity, batch, torch.int8, seconds)


def model(shape: tuple[int, int], seconds: float) -> Iterator[Row]:
    """bfloat16 models: inputs, weights and outputs."""
    for batch in BATCHES:
        for sparsity in (0.5, 0.75, 0.9, 0.95, 0.99):
            yield from contested("model", shape, "unstructured", sparsity, batch, torch.bfloat16, seconds)


def blocks(shape: tuple[int, int], seconds: float) -> Iterator[Row]:
    """Structure at 90 %: blocks of several sizes, and constant fan-in."""
    for spelling in ("block 4x4", "block 8x8", "block 16x16", "block 32x32", "block 16x1", "fan-in"):
        for batch in BATCHES:
            yield from contested("blocks", shape, spelling, 0.9, batch, torch.int8, seconds)


def groups(shape: tuple[int, int], seconds: float) -> Iterator[Row]:
    """1 x 16 groups in 4 bits."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    for density in (1.0, 0.5, 0.3):
        kept = torch.rand(shape[0], -(-shape[1] // 16), generator=generator) < density
        mask = kept.repeat_interleave(16, 1)[:, : shape[1]]
        layer = GroupInt4Linear.from_dense(weight, mask)
        for batch in BATCHES:
            x = torch.randn(batch, shape[1], generator=generator)
            calls: dict[str, Callable[[], Tensor]] = {"int4 groups": partial(layer, x)}
            for cls in (OneDNNDense, BFloat16OneDNNDense):
                calls[cls.name] = partial(cls.hold(weight, batch).compute, x, None, "none")
            times = {name: time.median * 1e3 for name, time in latencies(calls, seconds=seconds).items()}
            case = {
                "part": "groups",
                "layer": list(shape),
                "pattern": "1x16 groups",
                "sparsity": 1 - density,
                "batch": batch,
            }
            yield from rows_of(case, times, int(mask.sum()))


PARTS = {"weights": weights, "model": model, "blocks": blocks, "groups": groups}


def told(row: Row) -> str:
    def ratio(of: str) -> str:
        against = row[f"against_{of}"]
        return "" if against is None else f"{against:6.2f}x {of}"

    return (
        f"{row['pattern']:13} {row['sparsity']:.2f}  batch {row['batch']:4}  {row['layout']:16} {row['ms']:8.4f} ms "
        f"{row['gflops']:6.0f} GF {ratio('float32'):>16} {ratio('bfloat16'):>17}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="one of them; all if not given")
    parser.add_argument("--layer", default="1024x1024")
    parser.add_argument("--seconds", type=float, default=0.5, help="for the contenders of a case together")
    given = parser.parse_args()
    outputs, inputs = map(int, given.layer.split("x"))
    wanted = [given.part] if given.part else list(PARTS)
    with torch.inference_mode():
        rows = [row for part in wanted for row in PARTS[part]((outputs, inputs), given.seconds)]
    date = datetime.now(UTC).date().isoformat()
    path = RESULTS / f"{date}-precision.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in before if row["part"] not in wanted or row["layer"] != [outputs, inputs]]
    result = {
        "claim": "fewer bits of a weight are time",
        "date": date,
        "machine": asdict(machine()),
        "rows": kept + rows,
    }
    path.write_text(json.dumps(result, indent=1))
    print(machine())
    for row in rows:
        print(told(row))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
