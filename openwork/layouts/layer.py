"""What the layers that own only their kept weights have in common.

Such a layer stands in for a dense one with a weight ``[out, in, *kernel]`` that exists nowhere: its parameter
is the vector of kept weights, so its gradient and the state of any optimizer have that size.

=================  ===================  ================================================================
``weight_values``  ``[kept]``           Parameter: kept weights in row-major order
``bias``           ``[out]``            Parameter, as in the dense layer
``weight_crow``    int32 ``[out + 1]``  buffer: where each row starts (:class:`~openwork.layouts.csr.CSR`)
``weight_col``     int32 ``[kept]``     buffer: input, and place in the kernel, of each kept weight
=================  ===================  ================================================================

All four are in the ``state_dict`` under these names. The topology is that of the matrix
``weight.flatten(1)``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn

from openwork.layouts import bitmask
from openwork.layouts.csr import CSR, described
from openwork.layouts.fitting import kept_count, loaded
from openwork.layouts.observed import Observed
from openwork.layouts.prepared import P, PreparedLayer
from openwork.layouts.resizable import Resizable

D = TypeVar("D", nn.Linear, nn.Conv2d, nn.Embedding)


class SparseLayer(PreparedLayer[P], Observed, Resizable):
    """Base of the layers that store, train and multiply kept weights only.

    It is inherited before the dense layer that it stands in for.
    """

    weight_values: nn.Parameter
    bias: nn.Parameter | None

    _made_by: ClassVar[str]
    """How a dense layer becomes one, for errors."""

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """``[out, in, *kernel]``."""

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """An ordinary dense layer with copies of the same weights."""

    def _hold(
        self,
        topology: CSR | None,
        sparsity: float | None,
        kept: int | None,
        bias: bool,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make parameters and buffers: the second half of a constructor, once :attr:`weight_shape` is known."""
        generator = torch.default_generator if generator is None else generator
        if topology is None:
            topology = CSR.random(self.matrix_shape, kept_count(self.matrix_shape, sparsity, kept), generator)
        elif sparsity is not None or kept is not None:
            raise TypeError("a topology already says what is kept: pass it without sparsity= and kept=")
        elif topology.shape != self.matrix_shape:
            raise ValueError(
                f"a {type(self).__name__} {list(self.weight_shape)} has a topology {self.matrix_shape}, "
                f"not {topology.shape}"
            )
        topology = topology.to(topology.col.device if device is None else device)
        values = torch.empty(topology.kept, device=topology.col.device, dtype=dtype)
        self.weight_values = nn.Parameter(values)
        self._index(topology)
        self._watch_nothing()
        outputs = self.matrix_shape[0]
        self.register_parameter("bias", nn.Parameter(values.new_empty(outputs)) if bias else None)
        self.reset_parameters(generator)
        self._prepare()

    @torch.no_grad()
    def _fill(self, values: Tensor, bias: Tensor | None) -> Self:
        self.weight_values.copy_(values)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        return self

    def _like(self, dense: nn.Linear | nn.Conv2d | nn.Embedding) -> Self:
        """Train what ``dense`` trains, in the mode that it is in."""
        for ours, theirs in ((self.weight_values, dense.weight), (self.bias, getattr(dense, "bias", None))):
            if ours is not None and theirs is not None:
                ours.requires_grad_(theirs.requires_grad)
        return self.train(dense.training)

    def _densified(self, dense: D) -> D:
        """``dense`` (on the meta device) with the weights of this layer."""
        dense.weight = nn.Parameter(self.weight, requires_grad=self.weight_values.requires_grad)
        if self.bias is not None and not isinstance(dense, nn.Embedding):
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return dense.train(self.training)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: uniform within ``1 / sqrt(fan_in)`` of zero, as the dense layers of torch do
        (Kaiming uniform, a = sqrt 5), with the number of connections each unit really has as its fan-in. The bias of
        a unit without any is zero.
        """
        fan_in = self.topology.fan_in
        bound = fan_in.clamp(min=1).rsqrt() * (fan_in > 0)
        limits = bound.repeat_interleave(fan_in, output_size=self.weight_values.numel())
        for parameter, limit in ((self.weight_values, limits), (self.bias, bound)):
            if parameter is not None:
                uniform = (
                    torch.rand(parameter.shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)
                )
                with torch.no_grad():
                    parameter.copy_(uniform.to(limit.device).mul_(limit))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in * kernel)``: the weight as a matrix."""
        return self.weight_shape[0], math.prod(self.weight_shape[1:])

    @property
    def topology(self) -> CSR:
        """Which connections are kept, of the weight as a matrix."""
        return CSR(self.matrix_shape, self.weight_crow, self.weight_col)

    @property
    def weight(self) -> Tensor:
        """The dense weight: a detached copy, made anew for whoever asks."""
        return self.topology.dense(self.weight_values.detach()).view(self.weight_shape)

    @weight.setter
    def weight(self, value: object) -> None:
        self._refuse_dense(value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in ``nn.Module``; a dense ``weight`` is refused."""
        if name == "weight":
            self._refuse_dense(param)
        super().register_parameter(name, param)

    def _refuse_dense(self, value: object) -> NoReturn:
        found = described(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"cannot set `weight` to {found}: this {type(self).__name__} stores {self.weight_values.numel()} "
            "kept weights and no dense tensor. Write to `weight_values`; change connections with "
            f"`retopologize_(topology, values)`; or make a layer with `{self._made_by}`"
        )

    def _in_precision(self, x: Tensor) -> Tensor:
        """``x`` as the weights can take it.

        Autocast lowers the precision of what dense kernels then compute faster. Sparse ones do not, so the
        weights keep theirs, and take inputs that another layer has lowered.
        """
        if x.dtype != self.weight_values.dtype and torch.is_autocast_enabled(x.device.type):
            return x.to(self.weight_values.dtype)
        return x

    @torch.no_grad()
    def retopologize_(self, topology: CSR, values: Tensor) -> Self:
        """Replace connections and weights together.

        ``weight_values`` stays the same Parameter object, so optimizers keep serving it, also when the
        number of kept connections changes; moving the optimizer's state along is up to the caller. Its
        ``grad`` belonged to the old connections and is dropped.

        Args:
            topology: of the same ``matrix_shape``; copied to the layer's device.
            values: ``[kept]`` of the layer's dtype, row-major; copied.

        Raises:
            ValueError: anything does not fit; the layer has not changed then.
        """
        if topology.shape != self.matrix_shape:
            raise ValueError(f"this layer has connections {self.matrix_shape}, not {topology.shape}")
        if values.shape != topology.col.shape or values.dtype != self.weight_values.dtype:
            raise ValueError(
                f"{topology.kept} connections of this layer need values "
                f"{described(self.weight_values[:0].new_empty(topology.kept))}, not {described(values)}"
            )
        device = self.weight_values.device
        topology = topology.validate("topology").to(device)
        # New buffers, not new contents: a CSR taken from this layer before must not change under its owner.
        self._replace(CSR(topology.shape, topology.crow.clone(), topology.col.clone()), values.to(device))
        return self

    @torch.no_grad()
    def adopt_(self, topology: CSR, values: Tensor) -> Self:
        """As :meth:`retopologize_`, with a topology that is right by construction and on the layer's device. Its arrays become
        the layer's own: nobody else may have them.
        """
        self._replace(topology, values)
        return self

    def _replace(self, topology: CSR, values: Tensor) -> None:
        if values.shape == self.weight_values.shape:
            self.weight_values.copy_(values)  # in the memory that flattened buckets and graphs point to
        else:
            # A graph that is still alive (a loop's last loss) has an accumulator of the old size, which the
            # new graph would share. Another is made only for another type, so the type changes on the way.
            other = torch.float64 if values.dtype == torch.float32 else torch.float32
            self.weight_values.data = values.new_empty(0, dtype=other)
            self.weight_values.data = values.clone()
        self.weight_values.grad = None
        self.weight_crow, self.weight_col = topology.crow, topology.col
        self.topology_version += 1
        self._prepare()

    def extra_repr(self) -> str:
        """Sizes and density."""
        kept = self.weight_values.numel()
        return f"{super().extra_repr()}, kept={kept}, density={self.topology.density:.4g}"

    @torch.no_grad()
    def _admitted(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """The state, with room for whatever number of connections comes: they fit."""
        state = self._unfolded(state, prefix)
        if found := loaded(state, prefix, self.matrix_shape):
            topology, values = found
            device = self.weight_values.device
            # The values too: the state that is loaded may be this layer's own, and lie where room is made.
            crow, col = (array.to(device, copy=True) for array in (topology.crow, topology.col))
            self._replace(CSR(topology.shape, crow, col), values.to(device, self.weight_values.dtype))
        return state

    def _unfolded(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """The state with row pointers and int32 columns; a file may hold bits, or columns of 16 bits."""
        name, state = f"{prefix}weight", dict(state)
        if isinstance(bits := state.pop(f"{name}_bitmask", None), Tensor):
            topology = CSR.from_mask(bitmask.unpack(bits, self.matrix_shape[1], name))
            state |= {f"{name}_crow": topology.crow, f"{name}_col": topology.col}
        elif isinstance(columns := state.get(f"{name}_col"), Tensor) and columns.dtype == torch.uint16:
            state[f"{name}_col"] = columns.int()
        elif name in state:
            raise ValueError(
                f"{name}: a dense tensor does not say which connections this {type(self).__name__} keeps; load it into "
                f"the dense layer, or make a layer with `{self._made_by}`"
            )
        return state
