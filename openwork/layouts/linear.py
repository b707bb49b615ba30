"""A linear layer that owns only its kept weights.

``y = x Wᵀ + b`` where ``W [out, in]`` exists nowhere: the parameter is the vector of kept weights, so its
gradient and the state of any optimizer have that size, and the product runs over kept weights only, forward
and backward.

=================  ===================  ================================================================
``weight_values``  ``[kept]``           Parameter: kept weights in row-major order
``bias``           ``[out]``            Parameter, as in ``nn.Linear``
``weight_crow``    int32 ``[out + 1]``  buffer: where each row starts (:class:`~openwork.layouts.csr.CSR`)
``weight_col``     int32 ``[kept]``     buffer: input of each kept weight
=================  ===================  ================================================================

All four are in the ``state_dict`` under these names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from openwork.kernels.linear import Prepared, prepare, sparse_linear
from openwork.layouts.csr import CSR, described

STORED = ("weight_values", "weight_crow", "weight_col")
"""What stands for ``weight`` in the ``state_dict``."""


class SparseLinear(nn.Linear):
    """``nn.Linear`` that stores, trains and multiplies kept weights only. The dense matrix is never
    allocated.

    It *is* an ``nn.Linear`` to whoever asks; :attr:`weight` gives the dense tensor, as a copy. (Initialisers
    that write into ``layer.weight`` write into that copy. A new layer is already initialised, for the fan-in
    of each unit.)

    Args:
        in_features: size of an input.
        out_features: size of an output.
        bias: learn an additive bias.
        sparsity: fraction of zeros, in [0, 1]: ``round((1 - sparsity) * in * out)`` random connections are
            kept.
        kept: exact number of random connections, instead of ``sparsity``.
        topology: the connections themselves, instead of either.
        generator: CPU generator for the random topology and the initial weights; torch's own if None.
        device: where the tensors live.
        dtype: of weights and bias; torch's default if None.

    Attributes:
        topology_version: counts changes of topology; what is derived from the indices is valid for one
            version.
        observe: while True, every backward pass through the layer appends to ``observations``.
        observations: pairs ``(x [tokens, in], dy [tokens, out])``, detached: what it takes to rank the dense
            gradient ``dyᵀ x`` without storing it. Whoever turns ``observe`` on clears them.
    """

    bias: nn.Parameter | None  # type: ignore[assignment]  # torch says Tensor
    weight_crow: Tensor
    weight_col: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float | None = None,
        kept: int | None = None,
        topology: CSR | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (out_features, in_features)
        generator = torch.default_generator if generator is None else generator
        if topology is None:
            topology = CSR.random(shape, _exactly_one(shape, sparsity, kept), generator)
        elif sparsity is not None or kept is not None:
            raise TypeError("a topology already says what is kept: pass it without sparsity= and kept=")
        elif topology.shape != shape:
            raise ValueError(
                f"a layer from {in_features} to {out_features} has a topology {shape}, not {topology.shape}"
            )
        topology = topology.to(topology.col.device if device is None else device)
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate the dense weight
        self.in_features, self.out_features = in_features, out_features
        self.topology_version = 0
        self.observe = False
        self.observations: list[tuple[Tensor, Tensor]] = []
        self._prepared: Prepared | None = None
        values = torch.empty(topology.kept, device=topology.col.device, dtype=dtype)
        self.weight_values = nn.Parameter(values)
        self.register_buffer("weight_crow", topology.crow.clone())
        self.register_buffer("weight_col", topology.col.clone())
        self.register_parameter("bias", nn.Parameter(values.new_empty(out_features)) if bias else None)
        self.reset_parameters(generator)
        self._prepare()

    @classmethod
    def from_values(cls, topology: CSR, values: Tensor, bias: Tensor | None = None) -> Self:
        """A layer that holds copies of ``values [kept]`` and ``bias [out]``, with their dtype and device."""
        if values.shape != topology.col.shape or (bias is not None and bias.shape != topology.shape[:1]):
            given = [described(tensor) for tensor in (values, bias) if tensor is not None]
            raise ValueError(
                f"{topology.kept} connections {topology.shape} need values [{topology.kept}] and a bias "
                f"[{topology.shape[0]}] or none, not {' and '.join(given)}"
            )
        layer = cls(
            topology.shape[1],
            topology.shape[0],
            bias is not None,
            topology=topology,
            generator=torch.Generator(),  # what it draws is replaced below; nobody else's numbers are spent
            device=values.device,
            dtype=values.dtype,
        )
        with torch.no_grad():
            layer.weight_values.copy_(values)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    @classmethod
    def from_linear(cls, linear: nn.Linear, kept: Tensor | CSR) -> Self:
        """The layer that ``linear`` becomes with only some of its connections; ``linear`` is not changed.

        Args:
            linear: a dense layer.
            kept: the connections to keep, which may be zero: a boolean mask ``[out, in]`` or a topology.
        """
        topology = kept if isinstance(kept, CSR) else CSR.from_mask(kept)
        if topology.shape != tuple(linear.weight.shape):
            found = "kept connections of the same shape"
            raise ValueError(f"a weight {list(linear.weight.shape)} needs {found}, not {topology.shape}")
        positions = topology.positions().to(linear.weight.device)
        layer = cls.from_values(topology, linear.weight.detach().flatten()[positions], linear.bias)
        for ours, theirs in ((layer.weight_values, linear.weight), (layer.bias, linear.bias)):
            if ours is not None:
                ours.requires_grad_(theirs.requires_grad)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An ordinary dense ``nn.Linear`` with copies of the same weights."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight, requires_grad=self.weight_values.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return linear.train(self.training)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: uniform within ``1 / sqrt(fan_in)`` of zero, as ``nn.Linear`` does (Kaiming
        uniform, a = sqrt 5), with the number of connections each unit really has as its fan-in. The bias of
        a unit without any is zero.
        """
        fan_in = self.topology.fan_in
        bound = fan_in.clamp(min=1).rsqrt() * (fan_in > 0)
        for parameter, limit in ((self.weight_values, bound[self.topology.rows()]), (self.bias, bound)):
            if parameter is not None:
                uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
                with torch.no_grad():
                    parameter.copy_(uniform.to(limit.device) * limit)

    @property
    def topology(self) -> CSR:
        """Which connections are kept."""
        return CSR((self.out_features, self.in_features), self.weight_crow, self.weight_col)

    @property
    def weight(self) -> Tensor:
        """The dense ``[out, in]`` weight: a detached copy, made anew for whoever asks."""
        return self.topology.dense(self.weight_values.detach())

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
            f"cannot set `weight` to {found}: this SparseLinear stores {self.weight_values.numel()} kept "
            "weights and no dense tensor. Write to `weight_values`; change connections with "
            "`retopologize_(topology, values)`; or make a layer with `SparseLinear.from_linear(linear, kept)`"
        )

    @property
    def prepared(self) -> Prepared:
        """What the kernels derive from the indices, proven to be in range on the way.

        It is made at once when the topology changes, so that ``torch.compile`` never traces the making.
        """
        prepared = self._prepared
        if prepared is None or not (torch.compiler.is_compiling() or self._is_current(prepared)):
            self._prepare()
            prepared = self._prepared
        assert prepared is not None
        return prepared

    def _prepare(self) -> None:
        if not self.weight_col.is_meta:
            crow, col = self.weight_crow.clone(), self.weight_col.clone()
            self._prepared = prepare(crow, col, (self.out_features, self.in_features), "weight")
            self._versions = _versions(self.weight_crow, self.weight_col)

    def _is_current(self, prepared: Prepared) -> bool:
        """Whether the buffers still say what was prepared.

        Code that knows no topologies may write to them: averaging of models, synchronisation of buffers.
        Contents are compared only after such a write.
        """
        versions = _versions(self.weight_crow, self.weight_col)
        if versions == self._versions:
            return True
        self._versions = versions
        if torch.equal(self.weight_crow, prepared.crow) and torch.equal(self.weight_col, prepared.col):
            return True
        self.topology_version += 1
        return False

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"this layer takes [..., {self.in_features}], not {described(x)}")
        y = sparse_linear(x, self.weight_values, self.prepared, self.bias)
        return self._observed(x.detach(), y) if self.observe and y.requires_grad else y

    def _observed(self, x: Tensor, y: Tensor) -> Tensor:
        """``y``, which will note ``x`` and its own gradient when that arrives."""

        def note(dy: Tensor) -> None:
            tokens = x.reshape(-1, self.in_features), dy.detach().reshape(-1, self.out_features)
            self.observations.append(tokens)

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
            topology: of the same ``(out, in)``; copied to the layer's device.
            values: ``[kept]`` of the layer's dtype, row-major; copied.

        Raises:
            ValueError: anything does not fit; the layer has not changed then.
        """
        if topology.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"this layer has connections {(self.out_features, self.in_features)}, not {topology.shape}"
            )
        if values.shape != topology.col.shape or values.dtype != self.weight_values.dtype:
            raise ValueError(
                f"{topology.kept} connections of this layer need values "
                f"{described(self.weight_values[:0].new_empty(topology.kept))}, not {described(values)}"
            )
        device = self.weight_values.device
        self._replace(topology.validate("topology").to(device), values.to(device))
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
        # New buffers, not new contents: a CSR taken from this layer before must not change under its owner.
        self.weight_crow, self.weight_col = topology.crow.clone(), topology.col.clone()
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
        found = [name for name in STORED if prefix + name in state_dict]
        if found:
            try:
                self._make_room({name: state_dict[prefix + name] for name in found}, prefix)
            except ValueError as error:
                error_msgs.append(str(error))
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @torch.no_grad()
    def _make_room(self, stored: Mapping[str, Tensor], prefix: str) -> None:
        if len(stored) < len(STORED):
            lacking = ", ".join(f"{prefix}{name}" for name in STORED if name not in stored)
            raise ValueError(
                f"{prefix}weight: kept weights and their places are loaded together; {lacking} is missing"
            )
        values, crow, col = (stored[name] for name in STORED)
        topology = CSR((self.out_features, self.in_features), crow, col).validate(f"{prefix}weight")
        if values.shape != col.shape:
            raise ValueError(
                f"{prefix}weight_values: {topology.kept} connections need [{topology.kept}], not "
                f"{described(values)}"
            )
        device = self.weight_values.device
        self._replace(topology.to(device), self.weight_values.new_empty(topology.kept))


def _exactly_one(shape: tuple[int, int], sparsity: float | None, kept: int | None) -> int:
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
