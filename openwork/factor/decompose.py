"""Decomposition: layers in two thinner ones, where few singular values matter; no data, no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork.factorization import FORMS, Form, as_matrix, energy_rank, spectrum, truncated, value_rank
from openwork.layouts.low_rank import LowRankLinear
from openwork.method import check_fraction, method
from openwork.restructuring import Restructuring


@method(
    paper="Xu et al., TRP: Trained Rank Pruning for Efficient Deep Neural Networks, IJCAI 2020, arXiv 2004.14566; spatial form: "
    "Jaderberg et al., Speeding up Convolutional Neural Networks with Low Rank Expansions, BMVC 2014, arXiv 1405.3866; "
    "decoupled: Guo et al., Network Decoupling: From Regular to Depthwise Separable Convolutions, BMVC 2018, arXiv 1808.05517",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class Decompose(Restructuring):
    """Replace linear layers and convolutions by two of them, through the singular values that are worth keeping.

    =============  ======================================================  ===========================
    form           the two layers, of rank ``k``                           weights
    =============  ======================================================  ===========================
    linear         ``in -> k -> out``                                      ``k (in + out)``
    ``channel``    ``kh x kw`` to ``k`` channels, then ``1 x 1``           ``k (in kh kw + out)``
    ``spatial``    ``kh x 1`` to ``k`` channels, then ``1 x kw``           ``k (in kh + out kw)``
    ``decoupled``  ``1 x 1`` to ``k`` channels for each output,            ``k out (in + kh kw)``
                   then ``kh x kw`` in groups of these
    =============  ======================================================  ===========================

    The arithmetic is in that proportion. A network trained for it (:class:`openwork.TRP`) loses next to nothing, another one
    may collapse. A layer whose two halves would have as many weights stays.

    Args:
        value: keep singular values above it: right after training with :class:`openwork.TRP`, whose weights are of low rank
            already; 0.05 as in the authors' code.
        energy: keep this part of the sum of squares instead.
        form: of convolutions.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    value: float = 5e-2
    energy: float | None = None
    form: Form = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value < 0 or self.form not in FORMS:
            raise ValueError(
                f"value is at least 0 and form one of {', '.join(FORMS)}; got {self.value} and {self.form!r}"
            )
        if self.energy is not None:
            check_fraction("energy", self.energy)

    def rank(self, matrix: Tensor) -> int:
        """How many components of a matrix are kept, or of each of several."""
        singular = spectrum(torch.linalg.svdvals(matrix.double()))
        return value_rank(singular, self.value) if self.energy is None else energy_rank(singular, self.energy)

    def forms(self, layers: Mapping[str, Any]) -> Mapping[str, nn.Module | str]:
        return {name: self._form(layer) for name, layer in layers.items()}

    @torch.no_grad()
    def _form(self, layer: Any) -> nn.Module | str:
        weight = layer.weight.detach()
        is_conv = isinstance(layer, nn.Conv2d)
        if is_conv and (layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            return "stays: in groups, or padded with more than zeros"
        matrix = as_matrix(weight, self.form)
        rank = self.rank(matrix)
        if rank * sum(matrix.shape[-2:]) >= matrix.shape[-2:].numel():
            return f"stays: rank {rank} saves nothing"
        if not is_conv:
            factors = truncated(matrix, rank)
            return LowRankLinear(factors.left, factors.right, layer.bias).train(layer.training)
        if self.form == "decoupled":
            left, right, _ = zip(*(truncated(one, rank) for one in matrix), strict=True)
            return _decoupled(layer, torch.stack(left), torch.stack(right)).train(layer.training)
        factors, build = truncated(matrix, rank), _channel if self.form == "channel" else _spatial
        return build(layer, factors.left, factors.right).train(layer.training)


def _channel(conv: nn.Conv2d, left: Tensor, right: Tensor) -> nn.Module:
    """``left [out, k]``, ``right [k, in * kh * kw]``."""
    geometry: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    size: Any = conv.kernel_size
    first = _empty(conv.in_channels, len(right), size, bias=False, **geometry)
    last = _empty(len(right), conv.out_channels, 1, bias=conv.bias is not None)
    return _filled(conv, first, right.view(-1, *conv.weight.shape[1:]), last, left[:, :, None, None])


def _spatial(conv: nn.Conv2d, left: Tensor, right: Tensor) -> nn.Module:
    """``left [in * kh, k]``, ``right [k, out * kw]``."""
    (out, inputs, kh, kw), k = conv.weight.shape, len(right)
    (sh, sw), (dh, dw) = conv.stride, conv.dilation
    assert not isinstance(conv.padding, str)
    ph, pw = conv.padding
    first = _empty(inputs, k, (kh, 1), (sh, 1), (ph, 0), (dh, 1), bias=False)
    last = _empty(k, out, (1, kw), (1, sw), (0, pw), (1, dw), bias=conv.bias is not None)
    columns = left.view(inputs, kh, k).permute(2, 0, 1).unsqueeze(3)
    rows = right.view(k, out, kw).permute(1, 0, 2).unsqueeze(2)
    return _filled(conv, first, columns, last, rows)


def _decoupled(conv: nn.Conv2d, left: Tensor, right: Tensor) -> nn.Module:
    """``left [out, in, k]``, ``right [out, k, kh * kw]``."""
    (out, inputs, kh, kw), k = conv.weight.shape, right.shape[1]
    geometry: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    first = _empty(inputs, out * k, 1, bias=False)
    last = _empty(out * k, out, (kh, kw), groups=out, bias=conv.bias is not None, **geometry)
    mixed = left.transpose(1, 2).reshape(out * k, inputs, 1, 1)
    return _filled(conv, first, mixed, last, right.view(out, k, kh, kw))


def _empty(*shape: Any, **geometry: Any) -> nn.Conv2d:
    conv: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, *shape, **geometry)  # draws no weights that nobody needs
    return conv


def _filled(conv: nn.Conv2d, first: nn.Conv2d, one: Tensor, last: nn.Conv2d, other: Tensor) -> nn.Module:
    first.weight, last.weight = nn.Parameter(one.contiguous()), nn.Parameter(other.contiguous())
    if conv.bias is not None:
        last.bias = nn.Parameter(conv.bias.detach().clone())
    return nn.Sequential(first, last)
