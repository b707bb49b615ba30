"""The ``Conv1D`` of Transformers, packed: a linear layer whose weight is ``[in, out]``.

GPT-2 and its kin hold their linear layers that way. There is no stored sparse form of them, so the parameters stay what they are,
and files know nothing of packing; the layouts are held besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from openwork.layouts.csr import CSR
from openwork.layouts.layout import Layout
from openwork.layouts.packed import Dispatch, renewed


class PackedConv1D(nn.Module):
    """A ``Conv1D`` that computes inference in chosen layouts. Made by :func:`openwork.pack_`.

    Attributes:
        nf: outputs.
        nx: inputs.
        weight: ``[in, out]``.
        bias: ``[out]``.
        dispatch: the layouts measured fastest, by size of batch.
    """

    nf: int
    nx: int
    dispatch: Dispatch

    @classmethod
    def pack(cls, layer: nn.Module, by_batch: Mapping[int, Layout]) -> PackedConv1D:
        """The layer that takes the place of ``layer``; it shares weight and bias with it."""
        packed = cls()
        packed.register_parameter("weight", layer._parameters["weight"])
        packed.register_parameter("bias", layer._parameters["bias"])
        packed.nx, packed.nf = layer.get_parameter("weight").shape
        packed.dispatch = Dispatch(by_batch, packed.nx)
        return packed.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """``x W + b``, ``x [..., in]`` to ``[..., out]``."""
        return self.dispatch(x, self._parameters["bias"], "none")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.dispatch = renewed(self.dispatch, *connections_of_conv1d(self))

    def extra_repr(self) -> str:
        """Sizes and layouts."""
        return f"nf={self.nf}, nx={self.nx}, layouts={{{self.dispatch}}}"


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the ``Conv1D`` of Transformers, packed or not."""
    kind = type(module).__name__
    return isinstance(module, PackedConv1D) or (kind == "Conv1D" and hasattr(module, "nf"))


def connections_of_conv1d(layer: nn.Module) -> tuple[CSR, Tensor, Tensor | None]:
    """What it keeps, as ``[out, in]``: whatever is not zero; and its bias."""
    weight = layer.get_parameter("weight").detach().T.contiguous()
    mask, bias = weight != 0, layer._parameters["bias"]
    return CSR.from_mask(mask), weight[mask], None if bias is None else bias.detach()
