"""Dense weights, held for the best dense kernels at hand: what every sparse layout has to beat.

PyTorch's own linear layer runs on MKL, which on some processors reaches half of what oneDNN does with a weight that was
reordered once. Both are contenders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from openwork.layouts.csr import CSR
from openwork.layouts.layout import Layout, layout
from openwork.layouts.reordered import Reordered

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda y: nn.functional.gelu(y, approximate="tanh"),
    "silu": nn.functional.silu,
}


def activated(y: Tensor, activation: str) -> Tensor:
    """``activation(y)`` by its name, see :data:`openwork.layouts.layout.ACTIVATIONS`."""
    return y if activation == "none" else _FUNCTIONS[activation](y)


class Dense(Layout):
    """A layout that holds every weight, zeros included."""

    weight_dtype: ClassVar[torch.dtype] = torch.float64  # whatever the weights are, they are not rounded
    input_dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        return cls.hold(topology.dense(values), batch)

    @classmethod
    def hold(cls, weight: Tensor, batch: int) -> Self:
        """Hold a dense ``weight [out, in]`` for batches of about ``batch``."""
        raise NotImplementedError


@layout
class TorchDense(Dense):
    """PyTorch's ``linear``: MKL on most builds."""

    name: ClassVar[str] = "dense"

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        return None

    @classmethod
    def hold(cls, weight: Tensor, batch: int) -> Self:
        return cls(weight)

    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return activated(nn.functional.linear(x, self.weight, bias), activation)

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()


@layout
class OneDNNDense(Reordered, Dense):
    """oneDNN with the weight reordered once for the batch size, reached through the ``mkldnn`` operators of torch."""

    name: ClassVar[str] = "dense onednn"

    def __init__(self, weight: Tensor, batch: int) -> None:
        self.batch = batch
        self.size = weight.numel() * weight.element_size()
        self.input_dtypes = (weight.dtype,)
        self.weight = self.reordered(weight)

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
            return "this build of torch has no oneDNN"
        if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.bfloat16):
            return f"it computes float32 and bfloat16 on the CPU, not {values.dtype} on {values.device.type}"
        return "it wants at least one sample" if batch < 1 else None

    @classmethod
    def hold(cls, weight: Tensor, batch: int) -> Self:
        return cls(weight, batch)

    def reordered(self, weight: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.batch)
        return found

    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        fused = activation == "relu"
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, bias, "relu" if fused else "none", [], ""
        )
        return y if fused else activated(y, activation)

    @property
    def nbytes(self) -> int:
        return self.size


@layout
class BFloat16Dense(TorchDense):
    """PyTorch's ``linear`` with weights, bias and inputs rounded to bfloat16; it sums in float32 and rounds the result."""

    name: ClassVar[str] = "dense bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16
    input_dtypes = (torch.bfloat16,)

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if values.dtype is torch.bfloat16:
            return "the weights are bfloat16 already"
        return cls.unsuited_to(values)

    @classmethod
    def hold(cls, weight: Tensor, batch: int) -> Self:
        return cls(weight.bfloat16())

    def compute(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        rounded = None if bias is None else bias.bfloat16()
        return self.linear(x.bfloat16(), rounded, activation).to(x.dtype)


@layout
class BFloat16OneDNNDense(OneDNNDense):
    """oneDNN in bfloat16, as :class:`BFloat16Dense`."""

    name: ClassVar[str] = "dense onednn bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        return BFloat16Dense.unsuited(topology, values, batch) or super().unsuited(topology, values, batch)

    @classmethod
    def hold(cls, weight: Tensor, batch: int) -> Self:
        return super().hold(weight.bfloat16(), batch)

    def compute(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        rounded = None if bias is None else bias.bfloat16()
        return self.linear(x.bfloat16(), rounded, activation).to(x.dtype)
