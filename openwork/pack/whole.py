"""Layer after layer, or as one network: measured like everything else."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openwork.kernels import native
from openwork.layouts.conv import unsuited
from openwork.layouts.conv_layout import ImagesConv, PixelsConv
from openwork.layouts.packed_conv import PackedConv, PackedConv2d
from openwork.pack.decisions import MARGIN, Whole
from openwork.pack.memory import Memory
from openwork.pack.network import Network, Runner
from openwork.pack.steps import is_depthwise
from openwork.progress import track
from openwork.timing import race

LAYERS = "layer after layer"


def run_whole_(
    model: nn.Module, example: Any, batches: Sequence[int], seconds: float, memory: Memory | None = None
) -> tuple[Whole, ...]:
    """Let ``model`` run as one network at the sizes of batch where that is faster than its layers one after the other, in place.

    Args:
        model: packed. Models of anything but images ``[images, channels, rows, columns]`` are left as they are.
        example: what it is called with.
        batches: sizes of batch.
        seconds: for measuring, at each size, besides two calls of each contender.
        memory: times that are known: then only the fastest form is built.

    Returns:
        What was measured, for each size of batch.
    """
    if isinstance(example, (tuple, list)) and len(example) == 1:
        (example,) = example
    if not (native.enabled() and isinstance(example, Tensor) and example.dim() == 4 and example.shape[0]):
        return ()
    told, networks = [], {}
    for batch in track(batches, "packing as a whole"):
        x = example[torch.arange(batch) % example.shape[0]].contiguous()
        forms = _forms(model, x)
        if not forms:
            return ()
        key = _key(model, x)
        times = None if memory is None else memory.recall(key)
        if times is None:
            built = _built(model, x, forms)
            if not built:
                return ()
            times, calm = _times(model, x, built, seconds)
            if calm and memory is not None:
                memory.remember(key, times)
            best = _best(times)
        else:
            best = _best(times)
            built = _built(model, x, {name: forms[name] for name in forms if name == best})
            best = best if best in built else LAYERS
        networks[batch] = built.get(best)
        told.append(Whole(batch, best, times[LAYERS] * 1e3, times[best] * 1e3))
    if any(network is not None for network in networks.values()):
        vars(model)["forward"] = Runner(model, networks)
    return tuple(told)


def _times(
    model: nn.Module, x: Tensor, built: Mapping[str, Network], seconds: float
) -> tuple[dict[str, float], bool]:
    """Median seconds of each form, and whether the machine was calm."""
    calls: dict[str, Callable[[], object]] = {LAYERS: lambda: model(x)}
    calls |= {name: partial(network, x) for name, network in built.items()}
    found = race(calls, seconds=seconds, rounds=5, always=[LAYERS])
    times = {name: latency.median for name, latency in found.items()}
    return times, all(latency.is_calm for latency in found.values())


def _best(times: Mapping[str, float]) -> str:
    best = min(times, key=lambda name: times[name])
    return LAYERS if times[LAYERS] < times[best] * MARGIN else best


def _key(model: nn.Module, x: Tensor) -> str:
    """What a measurement depends on: the modules with their layouts, and the images."""
    told = hashlib.sha256(repr((type(model).__qualname__, model)).encode()).hexdigest()[:16]
    return json.dumps(["whole", told, *x.shape], separators=(",", ":"))


def layer_by_layer_(model: nn.Module) -> None:
    """Undo :func:`run_whole_`."""
    if isinstance(vars(model).get("forward"), Runner):
        del vars(model)["forward"]


def _forms(model: nn.Module, x: Tensor) -> dict[str, Mapping[nn.Module, bool]]:
    """The networks that ``model`` could run as: the convolutions that each computes in our kernels, and how."""
    if (
        x.dtype is not torch.float32 or not x.is_cpu or "forward" in vars(model)
    ):  # a forward of the model's own
        return {}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and _computable(m)]
    sparse = [m for m in convolutions if _is_sparse(m)]
    if not sparse:
        return {}
    thin = [m for m in convolutions if m.groups > 1]
    forms = {m: m._nearest(x.shape[0]) for m in sparse if isinstance(m, PackedConv)}
    measured: dict[nn.Module, bool] = {m: f.grouped for m, f in forms.items() if isinstance(f, PixelsConv)}
    blocks = ImagesConv.unsuited_images(x.shape[0]) is None
    how = "in blocks" if blocks else "in pixels"
    depthwise = [m for m in thin if is_depthwise(m)]
    return {
        "layers as measured": measured | dict.fromkeys(depthwise, blocks),
        f"sparse convolutions {how}": dict.fromkeys([*sparse, *thin], blocks),
        f"all convolutions {how}": dict.fromkeys(convolutions, blocks),
    }


def _built(model: nn.Module, x: Tensor, forms: Mapping[str, Mapping[nn.Module, bool]]) -> dict[str, Network]:
    """Networks, without those that compute something else than ``model`` does."""
    found = dict(zip(forms, Network.each(model, x, forms.values()), strict=True))
    expected = model(x) if any(network is not None for network in found.values()) else None
    return {
        name: network
        for name, network in found.items()
        if network is not None and _agrees(network(x), expected, name)
    }


def _is_sparse(conv: nn.Conv2d) -> bool:
    """Whether at least half of the weights are zero."""
    if isinstance(conv, PackedConv2d):
        return True
    return conv.groups == 1 and int(conv.weight.count_nonzero()) * 2 <= conv.weight.numel()


def _computable(conv: nn.Conv2d) -> bool:
    """Whether our kernels can compute it: alone, that is, with as many groups as it likes."""
    if conv.weight.dtype is not torch.float32 or not conv.weight.is_cpu:
        return False
    return isinstance(conv, PackedConv) or not unsuited(conv, groups=True)


def _agrees(found: Any, expected: Any, name: str) -> bool:
    if not (isinstance(found, Tensor) and isinstance(expected, Tensor)):
        return False  # several outputs: nothing is compared, so nothing is replaced
    scale = expected.abs().max().clamp(min=1e-12)
    agrees = found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * scale)
    if not agrees:
        warnings.warn(
            f"the model is left to run layer after layer: with {name} it computes something else. Please report "
            "this with the model",
            RuntimeWarning,
            stacklevel=4,
        )
    return agrees
