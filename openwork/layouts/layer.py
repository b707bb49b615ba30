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
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn

from openwork.layouts import bitmask
from openwork.layouts.csr import CSR, described

STORED = ("weight_values", "weight_crow", "weight_col")
"""What stands for ``weight`` in the ``state_dict``."""

P = TypeVar("P")
"""What the kernels of a layer derive from its indices."""

D = TypeVar("D", nn.Linear, nn.Conv2d, nn.Embedding)


class SparseLayer(nn.Module, Generic[P]):
    """Base of the layers that store, train and multiply kept weights only.

    It is inherited before the dense layer that it stands in for.

    Attributes:
        topology_version: counts changes of topology; what is derived from the indices is valid for one
            version.
        observe: while True, every backward pass through the layer appends to ``observations``.
        observations: pairs (inputs, gradient of the outputs), detached: what it takes to rank the dense
            gradient without storing it, see :meth:`gradient_rows`. Whoever turns ``observe`` on clears them.
    """

    weight_values: nn.Parameter
    bias: nn.Parameter | None
    weight_crow: Tensor
    weight_col: Tensor

    _made_by: ClassVar[str]
    """How a dense layer becomes one, for errors."""

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """``[out, in, *kernel]``."""

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """An ordinary dense layer with copies of the same weights."""

    @abstractmethod
    def gradient_rows(self, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of the dense gradient that the observations add up to: ``[last - first,
        in * kernel]``, a matrix like that of the topology.
        """

    @abstractmethod
    def gradient_at(self, positions: Tensor) -> Tensor:
        """The same gradient at flat ``positions``, int64, ascending without repeats."""

    @abstractmethod
    def _prepare_kernels(self, crow: Tensor, col: Tensor) -> P:
        """What the kernels need, proven to be in range."""

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
            topology = CSR.random(self.matrix_shape, _kept(self.matrix_shape, sparsity, kept), generator)
        elif sparsity is not None or kept is not None:
            raise TypeError("a topology already says what is kept: pass it without sparsity= and kept=")
        elif topology.shape != self.matrix_shape:
            raise ValueError(
                f"a {type(self).__name__} {list(self.weight_shape)} has a topology {self.matrix_shape}, "
                f"not {topology.shape}"
            )
        topology = topology.to(topology.col.device if device is None else device)
        self.topology_version = 0
        self.observe = False
        self.observations: list[tuple[Tensor, Tensor]] = []
        self._prepared: P | None = None
        self._known: tuple[Tensor, Tensor] | None = None
        values = torch.empty(topology.kept, device=topology.col.device, dtype=dtype)
        self.weight_values = nn.Parameter(values)
        self.register_buffer("weight_crow", topology.crow.clone())
        self.register_buffer("weight_col", topology.col.clone())
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

    @property
    def prepared(self) -> P:
        """What the kernels derive from the indices, proven to be in range on the way.

        It is made at once when the topology changes, so that ``torch.compile`` never traces the making.
        """
        if self._prepared is None or not (torch.compiler.is_compiling() or self._is_current()):
            self._prepare()
        assert self._prepared is not None
        return self._prepared

    def _prepare(self) -> None:
        if not self.weight_col.is_meta:
            self._known = self._prepared = None  # their memory serves what takes their place
            self._known = self.weight_crow.clone(), self.weight_col.clone()
            self._prepared = self._prepare_kernels(*self._known)
            self._versions = _versions(self.weight_crow, self.weight_col)

    def _is_current(self) -> bool:
        """Whether the buffers still say what was prepared.

        Code that knows no topologies may write to them: averaging of models, synchronisation of buffers.
        Contents are compared only after such a write.
        """
        versions = _versions(self.weight_crow, self.weight_col)
        if versions == self._versions:
            return True
        self._versions = versions
        assert self._known is not None
        if torch.equal(self.weight_crow, self._known[0]) and torch.equal(self.weight_col, self._known[1]):
            return True
        self.topology_version += 1
        return False

    def _in_precision(self, x: Tensor) -> Tensor:
        """``x`` as the weights can take it.

        Autocast lowers the precision of what dense kernels then compute faster. Sparse ones do not, so the
        weights keep theirs, and take inputs that another layer has lowered.
        """
        if x.dtype != self.weight_values.dtype and torch.is_autocast_enabled(x.device.type):
            return x.to(self.weight_values.dtype)
        return x

    def _noted(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return x, dy

    def _observed(self, x: Tensor, y: Tensor) -> Tensor:
        """``y``; while observing, it will note ``x`` and its own gradient when that arrives."""
        if not (self.observe and y.requires_grad):
            return y
        x = x.detach()

        def note(dy: Tensor) -> None:
            self.observations.append(self._noted(x, dy.detach()))

        # A copy, because a hook on a view is lost when the caller's next step works in place, as relu_ does.
        y = y.clone()
        y.register_hook(note)
        return y

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.weight_col
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_col is not before:  # moved to another device, where nothing is prepared yet
            self._prepared = None
            if not before.is_meta:  # what comes from there has no contents before it is loaded
                self._prepare()
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Make room for whatever number of connections comes, after proving that they fit."""
        try:
            state_dict = self._unfolded(state_dict, prefix)
            found = [name for name in STORED if prefix + name in state_dict]
            if found:
                self._make_room({name: state_dict[prefix + name] for name in found}, prefix)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

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

    @torch.no_grad()
    def _make_room(self, stored: Mapping[str, Any], prefix: str) -> None:
        if len(stored) < len(STORED):
            lacking = ", ".join(f"{prefix}{name}" for name in STORED if name not in stored)
            raise ValueError(
                f"{prefix}weight: kept weights and their places are loaded together; {lacking} is missing"
            )
        for name, tensor in stored.items():
            if not isinstance(tensor, Tensor) or tensor.is_meta:
                raise ValueError(f"{prefix}{name}: needs a tensor with contents, not {_found(tensor)}")
        values, crow, col = (stored[name] for name in STORED)
        topology = CSR(self.matrix_shape, crow, col).validate(f"{prefix}weight")
        if values.shape != col.shape:
            raise ValueError(
                f"{prefix}weight_values: {topology.kept} connections need [{topology.kept}], not "
                f"{described(values)}"
            )
        device = self.weight_values.device
        # The values too: the state that is loaded may be this layer's own, and lie where room is made.
        topology = CSR(self.matrix_shape, crow.to(device, copy=True), col.to(device, copy=True))
        self._replace(topology, values.to(device, self.weight_values.dtype))


def _found(thing: object) -> str:
    return "one on the meta device" if isinstance(thing, Tensor) else type(thing).__name__


def check_held(topology: CSR, values: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless there is a value for each connection, and a bias for each output or none."""
    if values.shape != topology.col.shape or (bias is not None and bias.shape != topology.shape[:1]):
        given = [described(tensor) for tensor in (values, bias) if tensor is not None]
        raise ValueError(
            f"{topology.kept} connections {topology.shape} need values [{topology.kept}] and a bias "
            f"[{topology.shape[0]}] or none, not {' and '.join(given)}"
        )


def topology_of(weight: Tensor, kept: Tensor | CSR) -> CSR:
    """The connections of ``weight`` to keep: a topology, or a boolean mask of the weight's shape."""
    shape = weight.shape[0], math.prod(weight.shape[1:])
    fits = kept.shape == shape if isinstance(kept, CSR) else kept.shape in (weight.shape, shape)
    if not fits:
        raise ValueError(
            f"a weight {list(weight.shape)} needs kept connections of the same shape, not {tuple(kept.shape)}"
        )
    return kept if isinstance(kept, CSR) else CSR.from_mask(kept.reshape(shape))


def _kept(shape: tuple[int, int], sparsity: float | None, kept: int | None) -> int:
    if (sparsity is None) == (kept is None):
        raise TypeError("say how much to keep with exactly one of sparsity=, kept= and topology=")
    if kept is not None:
        return kept
    assert sparsity is not None
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is the fraction of zeros, between 0 and 1, not {sparsity}")
    return round((1 - sparsity) * shape[0] * shape[1])


def _versions(*buffers: Tensor) -> list[int]:
    """How often each was written to; tensors made for inference do not count."""
    return [0 if buffer.is_inference() else buffer._version for buffer in buffers]
