"""Bitwise training: the bits of integer weights are trained, and zeros come by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from openwork.layouts.bits import BitLinear
from openwork.method import method
from openwork.restructuring import Restructuring


@method(
    paper="Ivan, Training Sparse Neural Networks: Bit-wise Training of Neural Network Weights, 2022, arXiv 2202.09571",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class Bitwise(Restructuring):
    """Make every weight of its bits, and train those: any depth from ternary to 32 bits by one rule.

    Each bit is the sign of a latent number that the optimizer moves, and the step between them lets gradients through::

        b = 1[x > 0]        W = c (-1)^sign * sum of 2^i b_i
        dL/dx_i = c (-1)^sign 2^i / 2^(k-1) * dL/dW                 dL/dx_sign = -2 c |W/c| / 2^(k-1) * dL/dW

    for ``k`` magnitude bits. Weights start random: a fraction ``2^-k`` of them is zero. Where the magnitude is zero the sign has
    no gradient, so many stay there: with more bits, more and more of them. ``c`` is fixed, so that weights begin with He's
    deviation; the division by ``2^(k-1)`` keeps the gradients of high bits in bounds. The weights that were there play no part.

    Use an optimizer that adapts its step, such as Adam, without weight decay. ``layer.integers()`` gives the weight in units of
    ``c``, and :func:`openwork.to_dense_` an ordinary layer with exact zeros.

    Args:
        bits: of a weight, sign included; 2 is ternary.
        trained: how many leading bits are trained, the sign first; the others keep random values. All by default.

    Latent numbers take ``bits`` times the memory of a weight while training.
    """

    bits: int = 3
    trained: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 32:
            raise ValueError(f"a weight has 2 to 32 bits, sign included; got {self.bits}")
        if self.trained is not None and not 1 <= self.trained <= self.bits:
            raise ValueError(f"of {self.bits} bits 1 to {self.bits} can be trained; got {self.trained}")

    def forms(self, layers: Mapping[str, nn.Linear]) -> Mapping[str, nn.Module | str]:
        found = {}
        for name, layer in layers.items():
            shape = layer.out_features, layer.in_features
            made = BitLinear.drawn(
                shape, self.bits, self.generator(name), trained=self.trained, bias=layer.bias
            )
            found[name] = made.to(layer.weight.dtype)
        return found
