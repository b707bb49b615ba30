"""Measure each layer here, choose the fastest layout, keep the best dense kernel where that is faster, and say so.

    decisions = ow.pack_(model, example_inputs)
    print(decisions)

Every linear layer is timed at the sizes of batch it really sees, each sparse layout that suits it against every dense kernel
at hand, taking turns. A layer is only replaced where the winner beats what was there by more than the noise. Choices are
remembered for this machine, so that packing again costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.kernels import isa
from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense, TorchDense
from openwork.layouts.layout import Layout, layouts
from openwork.layouts.linear import SparseLinear
from openwork.layouts.packed import DenseLinear, Dispatch, PackedLinear, fixed_bias
from openwork.progress import track
from openwork.scores import run
from openwork.timing import Latency, latencies

MARGIN = 1.05
"""How many times faster a kernel must be before it takes a layer's place: less could be noise."""

_FUSED: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}


@dataclass(frozen=True)
class Decision:
    """What was measured for one layer at one size of batch.

    Attributes:
        layer: its name.
        shape: ``(out, in)``.
        kept: connections.
        batch: samples (or tokens) in a call.
        layout: the layout chosen.
        dense: the fastest dense kernel.
        dense_ms: its median milliseconds.
        packed_ms: median milliseconds of the layout chosen.
        why: the reason, in words.
        calm: whether few samples were interrupted by other processes; a choice made on a busy machine is a guess.
    """

    layer: str
    shape: tuple[int, int]
    kept: int
    batch: int
    layout: str
    dense: str
    dense_ms: float
    packed_ms: float
    why: str
    calm: bool = True

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / (self.shape[0] * self.shape[1]) if self.shape[0] * self.shape[1] else 0.0

    @property
    def ratio(self) -> float:
        """How many times faster than the fastest dense kernel."""
        return self.dense_ms / self.packed_ms


@dataclass(frozen=True)
class Decisions:
    """What :func:`pack_` chose, layer by layer. Print it, or iterate over its rows."""

    rows: tuple[Decision, ...]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        header = ("layer", "shape", "sparsity", "batch", "layout", "ms", "best dense", "ms", "ratio", "why")
        lines = [
            (
                row.layer,
                f"{row.shape[0]}x{row.shape[1]}",
                f"{row.sparsity:.3f}",
                str(row.batch),
                row.layout,
                f"{row.packed_ms:.4f}",
                row.dense,
                f"{row.dense_ms:.4f}",
                f"{row.ratio:.2f}x",
                row.why,
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        table = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in [header, *lines]
        ]
        busy = sum(not row.calm for row in self.rows)
        note = [
            f"{busy} of {len(self.rows)} choices were made while other processes kept the cores busy: pack again when it is calm"
        ]
        return "\n".join([*table, *(note if busy else [])])


@torch.no_grad()
def pack_(
    model: nn.Module,
    example_inputs: Any,
    *,
    batches: Sequence[int] | None = None,
    seconds: float = 0.2,
    cache: bool = True,
) -> Decisions:
    """Replace the linear layers of ``model`` by the fastest form of each on this machine, in place, for inference.

    The model is put in evaluation mode. Its outputs are compared before and after; ``state_dict`` and saving work as before.

    Args:
        model: trained, sparse or not.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments. Decides
            the size of batch that each layer is measured at.
        batches: sizes of batch to serve, instead of the one of ``example_inputs``; a layer keeps the best layout for each.
        seconds: to spend on measuring each layer at each size.
        cache: remember choices for this machine (in ``$OPENWORK_CACHE``, or the user's cache folder).

    Returns:
        The table of choices.

    Raises:
        ValueError: the model calls no linear layer on ``example_inputs``.
        RuntimeError: a packed layer changed the outputs by more than rounding; the model is as it was.
    """
    model.eval()
    expected, rows_seen = _observed(model, example_inputs)
    if not rows_seen:
        raise ValueError("the model calls no nn.Linear on the example inputs: there is nothing to pack")
    samples = _samples(example_inputs)
    memory = _Memory() if cache else None
    fused = _activations_behind(model)
    decisions: list[Decision] = []
    changes: list[tuple[str, nn.Module, nn.Module]] = []
    for name, rows in track(list(rows_seen.items()), "packing"):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        sizes = sorted(
            {rows} if batches is None else {max(1, round(rows / samples * batch)) for batch in batches}
        )
        behind, activation = fused.get(name, ("", "none"))
        chosen, told = _choose(name, layer, sizes, seconds, memory)
        decisions += told
        new = _packed(layer, chosen, activation)
        if new is not layer:
            changes.append((name, layer, new))
            if behind:
                changes.append((behind, model.get_submodule(behind), nn.Identity()))
    for name, _, new in changes:
        _put(model, name, new)
    _verify(model, example_inputs, expected, changes)
    if memory is not None:
        memory.write()
    return Decisions(tuple(decisions))


def _observed(model: nn.Module, example_inputs: Any) -> tuple[Any, dict[str, int]]:
    """The outputs of the model, and how many rows each of its linear layers saw."""
    rows: dict[str, int] = {}
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        rows[names[id(module)]] = args[0].numel() // max(1, args[0].shape[-1])

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if id(m) in names]
    try:
        return run(model, example_inputs), {name: count for name, count in rows.items() if count}
    finally:
        for handle in handles:
            handle.remove()


def _samples(inputs: Any) -> int:
    """The size of batch of the example inputs: the first axis of the first tensor."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    parts = (
        inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else ()
    )
    return next((_samples(part) for part in parts if isinstance(part, Tensor)), 1)


def _choose(
    name: str, layer: nn.Linear, sizes: Sequence[int], seconds: float, memory: _Memory | None
) -> tuple[dict[int, Layout], list[Decision]]:
    """The best layout of one layer for each size of batch."""
    topology, values = _connections(layer)
    shelf = {cls.name: cls for cls in layouts()}
    chosen, told = {}, []
    for batch in sizes:
        times, calm = _times(topology, values, batch, seconds, memory)
        dense = min((n for n in times if issubclass(shelf[n], Dense)), key=lambda n: times[n])
        best = _winner(times, dense)
        chosen[batch] = shelf[best].build(topology, values, batch)
        why = (
            "fastest here"
            if not issubclass(shelf[best], Dense)
            else _why_dense(topology, times, dense, shelf)
        )
        told.append(
            Decision(
                name,
                topology.shape,
                topology.kept,
                batch,
                best,
                dense,
                times[dense] * 1e3,
                times[best] * 1e3,
                why,
                calm,
            )
        )
    return chosen, told


def _times(
    topology: CSR, values: Tensor, batch: int, seconds: float, memory: _Memory | None
) -> tuple[dict[str, float], bool]:
    """Median seconds of every layout that suits, and whether the machine was calm. Only calm measurements are remembered."""
    key = _key(topology, values, batch)
    if memory is not None and (known := memory.recall(key)):
        return known, True
    measured = contest(topology, values, batch, seconds)
    times = {name: latency.median for name, latency in measured.items()}
    calm = all(2 * latency.disturbed < latency.samples + latency.disturbed for latency in measured.values())
    if calm and memory is not None:
        memory.remember(key, times)
    return times, calm


def _winner(times: dict[str, float], dense: str) -> str:
    """The fastest layout, or what is simpler where the gain could be noise: dense before sparse, torch's own before others."""
    best = min(times, key=lambda n: times[n])
    for simpler in (dense, TorchDense.name):
        if times[simpler] < times[best] * MARGIN:
            best = simpler
    return best


def _why_dense(topology: CSR, times: dict[str, float], dense: str, shelf: dict[str, type[Layout]]) -> str:
    sparse = {n: t for n, t in times.items() if not issubclass(shelf[n], Dense)}
    if not sparse:
        return "no sparse layout suits it"
    fastest = min(sparse, key=lambda n: sparse[n])
    density = topology.kept / max(1, topology.shape[0] * topology.shape[1])
    # The time of a sparse layout is about proportional to what it keeps.
    needed = 1.0 - density * times[dense] / (sparse[fastest] * MARGIN)
    wins = (
        f"would win from a sparsity of about {needed:.2f}"
        if 0.0 < needed < 0.999
        else "no sparsity would win at this size"
    )
    return f"stays dense: {fastest} takes {sparse[fastest] / times[dense]:.2f} times as long, {wins}"


def contest(topology: CSR, values: Tensor, batch: int, seconds: float) -> dict[str, Latency]:
    """Time every layout that suits a weight, dense ones included, on random inputs.

    Args:
        topology: the connections, ``[out, in]``.
        values: ``[kept]``.
        batch: samples in a call.
        seconds: to spend on all of them together, about.

    Returns:
        Name of the layout -> its latency.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, topology.shape[1], generator=generator).to(values.device, values.dtype)
    suited = [cls for cls in layouts() if cls.unsuited(topology, values, batch) is None]
    weight = topology.dense(values)
    calls: dict[str, Callable[[], object]] = {TorchDense.name: lambda: nn.functional.linear(x, weight)}
    for cls in suited:
        if cls is not TorchDense:  # that is what a layer does that is not packed: without a dispatch
            calls[cls.name] = _call(
                Dispatch({batch: cls.build(topology, values, batch)}, topology.shape[1]), x
            )
    return latencies(calls, seconds=seconds, rounds=9)


def _call(dispatch: Dispatch, x: Tensor) -> Callable[[], object]:
    return lambda: dispatch(x, None, "none")


def _connections(layer: nn.Linear) -> tuple[CSR, Tensor]:
    if isinstance(layer, SparseLinear):
        return layer.topology, layer.weight_values.detach()
    weight = layer.weight.detach()
    mask = weight != 0
    return CSR.from_mask(mask), weight[mask]


def _packed(layer: nn.Linear, chosen: dict[int, Layout], activation: str) -> nn.Module:
    if any(not isinstance(held, Dense) for held in chosen.values()):
        topology, values = _connections(layer)
        return PackedLinear.pack(topology, values, fixed_bias(layer), chosen, activation)
    dense = {batch: held for batch, held in chosen.items() if isinstance(held, Dense)}
    if isinstance(layer, SparseLinear):
        layer = layer.to_linear()
        return DenseLinear.pack(layer, dense, activation)
    if all(isinstance(held, TorchDense) for held in dense.values()):
        return layer
    return DenseLinear.pack(layer, dense, activation)


def _activations_behind(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Linear layer -> (name of the activation module right behind it in a Sequential, its name as an epilogue)."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            for (name, child), (after, behind) in pairwise(children):
                kind = _FUSED.get(type(behind))
                if isinstance(behind, nn.GELU) and behind.approximate == "tanh":
                    kind = "gelu_tanh"
                if isinstance(child, nn.Linear) and kind:
                    found[f"{prefix}.{name}".lstrip(".")] = (f"{prefix}.{after}".lstrip("."), kind)
    return found


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _verify(
    model: nn.Module, example_inputs: Any, expected: Any, changes: list[tuple[str, nn.Module, nn.Module]]
) -> None:
    outputs = run(model, example_inputs)
    for before, after in zip(_tensors(expected), _tensors(outputs), strict=True):
        scale = before.abs().max().clamp(min=1e-12)
        error = float(((before - after).abs().max() / scale).float()) if before.numel() else 0.0
        if error > (1e-4 if before.dtype in (torch.float32, torch.float64) else 3e-2):
            for name, old, _ in changes:
                _put(model, name, old)
            raise RuntimeError(
                f"packing changed the outputs by {error:.2e} of their largest value, more than rounding explains; the model was "
                "put back as it was. Please report this with the model's shapes"
            )


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = (
        outputs.values()
        if isinstance(outputs, dict)
        else outputs
        if isinstance(outputs, (tuple, list))
        else ()
    )
    return [t for part in parts for t in _tensors(part)]


def _key(topology: CSR, values: Tensor, batch: int) -> str:
    """What a measurement depends on. Densities are grouped in steps of 2 %, and how rows share connections is part of it."""
    outputs, inputs = topology.shape
    density = topology.kept / max(1, outputs * inputs)
    suited = [cls.name for cls in layouts() if cls.unsuited(topology, values, batch) is None]
    parts = [
        outputs,
        inputs,
        f"{density:.2f}" if density > 0.1 else f"{density:.3f}",
        batch,
        str(values.dtype),
        suited,
    ]
    return json.dumps(parts, separators=(",", ":"))


class _Memory:
    """Times measured before on this machine: a small JSON file, valid for one version, instruction set and number of threads."""

    def __init__(self) -> None:
        setting = [
            version("openwork"),
            torch.__version__,
            isa(),
            torch.get_num_threads(),
            os.cpu_count(),
            _processor(),
        ]
        digest = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:16]
        folder = (
            os.environ.get("OPENWORK_CACHE")
            or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openwork"
        )
        self.path = Path(folder) / "pack" / f"{digest}.json"
        self.known: dict[str, dict[str, float]] = {}
        # Without a file nothing was measured yet; a file that is no JSON was not written by us.
        with contextlib.suppress(OSError, ValueError):
            self.known = json.loads(self.path.read_text())
        self.changed = False

    def recall(self, key: str) -> dict[str, float] | None:
        return self.known.get(key)

    def remember(self, key: str, times: dict[str, float]) -> None:
        self.known[key] = times
        self.changed = True

    def write(self) -> None:
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self.known, indent=0))
            temporary.replace(self.path)
        except OSError:
            pass  # a cache that cannot be written only costs time


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
