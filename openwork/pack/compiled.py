"""The dense model as ``torch.compile`` makes it fastest: the contender that no layer meets by itself.

A compiler fuses what stands between layers and calls them without Python, which for a small network is what takes the time. It is
timed only on request, because compiling takes tens of seconds, and by itself, because what it makes brings threads of its own
that would still be awake when the next contender begins.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openwork.layouts.conv import SparseConv2d
from openwork.layouts.linear import SparseLinear
from openwork.layouts.packed import DenseLinear, PackedLinear
from openwork.layouts.packed_conv import PackedConv
from openwork.pack.decisions import Compiled
from openwork.pack.observed import samples_of
from openwork.progress import track
from openwork.scores import run
from openwork.timing import latencies

PACKED = (PackedLinear, DenseLinear, PackedConv)

TURNS = 2
"""How often the packed model and the compiled one take turns."""

REST = 0.1
"""Seconds that threads of the one get to fall asleep before the other is timed."""


def race_compiled(
    dense: nn.Module, packed: nn.Module, example: Any, batches: Sequence[int] | None, seconds: float
) -> tuple[Compiled, ...]:
    """Time what ``torch.compile`` makes of ``dense`` against ``packed``, at each size of batch.

    The compiler freezes the weights, so that it folds norms into them and reorders them once, and takes images with channels
    last, and without where that is faster.

    Args:
        dense: the model as it was before packing, in evaluation mode.
        packed: what became of it.
        example: what both are called with.
        batches: sizes of batch, for a single tensor; as many samples as the example has otherwise.
        seconds: for measuring each of them at each size, without compiling.
    """
    if isinstance(example, (tuple, list)) and len(example) == 1:
        (example,) = example
    sizes: list[Any] = [example]
    if isinstance(example, Tensor) and batches is not None:
        sizes = [example[torch.arange(batch) % example.shape[0]].contiguous() for batch in batches]
    return tuple(
        _raced(dense, packed, inputs, seconds) for inputs in track(sizes, "compiling the dense model")
    )


def dense_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose sparse layers are dense ones.

    Raises:
        ValueError: layers were packed before: what they were is not known.
    """
    packed = [name for name, module in model.named_modules() if isinstance(module, PACKED)]
    if packed:
        raise ValueError(
            f"compiled=True times the dense model, but {packed[0]} and {len(packed) - 1} more layers were packed "
            "before: pack the model that was not, or leave compiled out"
        )
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, (SparseLinear, SparseConv2d)):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, module.to_dense())
    return copied.eval()


def _raced(dense: nn.Module, packed: nn.Module, inputs: Any, seconds: float) -> Compiled:
    orders = [torch.contiguous_format]
    if isinstance(inputs, Tensor) and inputs.dim() == 4:
        orders.append(torch.channels_last)
    compiled_s, packed_s, failed = math.inf, math.inf, ""
    for order in orders:
        try:
            call = _compiled(dense, inputs, order)
        except Exception as error:  # whatever a compiler cannot do, or the machine has no C++ compiler
            failed = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
            continue
        times = _times({"packed": partial(run, packed, inputs), "compiled": call}, seconds / len(orders))
        compiled_s, packed_s = min(compiled_s, times["compiled"]), min(packed_s, times["packed"])
    if math.isinf(compiled_s):
        return Compiled(samples_of(inputs), None, None, failed)
    return Compiled(samples_of(inputs), compiled_s * 1e3, packed_s * 1e3)


def _compiled(dense: nn.Module, inputs: Any, order: torch.memory_format) -> Callable[[], object]:
    """A call of what the compiler makes, which is made by then."""
    from torch._inductor import config

    torch.compiler.reset()  # or it would take what it made for the other order for this one, too
    given = inputs
    if order is torch.channels_last:
        dense = dense.to(memory_format=order)  # type: ignore[call-overload]
        given = inputs.contiguous(memory_format=order)
    fast = torch.compile(dense, dynamic=False)
    assert isinstance(fast, nn.Module)
    call = partial(run, fast, given)
    with config.patch(freezing=True):
        call()
    return call


def _times(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each, the best of its turns."""
    times = dict.fromkeys(calls, math.inf)
    for _ in range(TURNS):
        for name, call in calls.items():
            found = latencies({name: call}, seconds=seconds / TURNS / len(calls), rounds=5)
            times[name] = min(times[name], found[name].median)
            time.sleep(REST)
    return times
