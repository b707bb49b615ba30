"""Who computes a call: the native kernels, the reference, or someone who watches the operators.

The kernels compute float32 on the CPU, and half precision once it is widened. Everything else is what `reference` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import native


def is_native(*tensors: Tensor | None) -> bool:
    """Whether the native kernels compute with these tensors: float32 on the CPU, outside transforms of ``torch.func``, which
    need operators they know.
    """
    if not native.enabled() or torch._C._are_functorch_transforms_active():
        return False
    return all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in tensors)


def is_half(*tensors: Tensor | None) -> bool:
    """Whether these tensors are computed natively once they are widened: all bfloat16 or all float16, on the CPU."""
    dtypes = {t.dtype for t in tensors if t is not None}
    if not native.enabled() or len(dtypes) != 1 or dtypes.isdisjoint(_HALF):
        return False
    return all(t is None or t.is_cpu for t in tensors)


_HALF = {torch.bfloat16, torch.float16}


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether someone looks at the operators instead of only at their results: a compiler, a transform such as
    ``torch.func.grad``, a mode that records or replaces operators. If nobody does, a kernel is called directly:
    the dispatcher's way to an operator written in Python takes ten microseconds and more, which is longer than
    many a sparse layer.
    """
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return True
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    )


_PLAIN = (Tensor, torch.nn.Parameter, type(None))
