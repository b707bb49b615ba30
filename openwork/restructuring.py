"""Gives layers of a model another form: fewer numbers, or more places for as many.

done = ow.restructure_(model, ow.Monarch(blocks=4))
print(done)                                     # layer, numbers before and after, how near it came
ow.to_dense_(model)                             # and back: multiplied out
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork.layouts.collapsible import CollapsibleConv2d
from openwork.layouts.structured import StructuredLinear
from openwork.method import Method, require_kind
from openwork.plan import plan
from openwork.weights import unwrapped


def starting(start: str) -> None:
    """Raise ValueError unless ``start`` is a way to begin: ``nearest`` to the weights there are, or ``fresh``."""
    if start not in ("nearest", "fresh"):
        raise ValueError(f"unknown start {start!r}: choose nearest or fresh")


@dataclass(frozen=True, kw_only=True)
class Restructuring(Method):
    """A method that replaces linear layers by modules which hold their weight in another form.

    ``sparsity``, ``kept``, ``allocation`` and ``pattern`` play no part: the form itself says how many numbers it is made of.
    """

    reads_zeros: ClassVar[bool] = True
    restructures: ClassVar[bool] = True
    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    """Which layers it has a form for; subclasses of them are others."""

    @abstractmethod
    def forms(self, layers: Mapping[str, Any]) -> Mapping[str, nn.Module | str]:
        """The new module of each layer, or why it stays as it is.

        Args:
            layers: name of the weight -> layer, in order of appearance; leave them as they are. Their weights are finite.
        """


@dataclass(frozen=True)
class Restructured:
    """One layer of what :func:`restructure_` did.

    Attributes:
        name: of the weight.
        shape: ``(out, in, *kernel)``.
        before: numbers in the weight.
        after: numbers that it is made of now, all that the new layer has beyond the bias there was; as before where it stays.
        error: ``|W - W'| / |W|`` in the Frobenius norm; of a fresh start about ``sqrt(2)``; None where there is no ``W'``.
        why: what became of it.
    """

    name: str
    shape: tuple[int, ...]
    before: int
    after: int
    error: float | None
    why: str


@dataclass(frozen=True)
class Restructurings:
    """The table of :func:`restructure_`. Print it, or iterate over its rows."""

    rows: tuple[Restructured, ...]

    @property
    def before(self) -> int:
        """Numbers in all weights before."""
        return sum(row.before for row in self.rows)

    @property
    def after(self) -> int:
        """Numbers in all weights now."""
        return sum(row.after for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{row.name.ljust(width)}  {'x'.join(map(str, row.shape))}  {row.before} -> {row.after}  "
            f"{'' if row.error is None else f'error {row.error:.4f}  '}{row.why}"
            for row in self.rows
        ]
        return "\n".join([*lines, f"{self.before} -> {self.after} numbers"])


def restructure_(model: nn.Module, method: Restructuring) -> Restructurings:
    """Replace layers of ``model`` by the forms of ``method``, in place.

    Which layers is said by ``method.include`` and ``method.exclude``. Layers with shared weights, and those that the form
    does not fit, stay, each with the reason. Make the optimizer afterwards: the layers have new parameters.

    Returns:
        The table of what was done.

    Raises:
        TypeError: the method does not replace layers.
        ValueError: no layer was replaced, a glob matches none, or a weight is NaN or infinite; the model has not changed then.
    """
    require_kind(method, Restructuring, "leaves layers what they are: use ow.attach or ow.sparsify_")
    model = unwrapped(model)
    weights = [row.weight for row in plan(model, method).sparse]
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    layers: dict[str, Any] = {}
    for w in weights:
        if type(w.module) in method.takes and owners[id(w.parameter)] == 1 and w.module is not model:
            layers[w.name] = w.module
    for name, layer in layers.items():
        if not bool(layer.weight.isfinite().all()):
            raise ValueError(
                f"{name} holds NaN or infinity, and no form comes near that: restore it, or exclude it"
            )
    found = method.forms(layers)
    rows, counted = [], set[int]()
    for name, layer in layers.items():
        form, before = found[name], layer.weight.numel()
        shape = tuple(layer.weight.shape)
        if isinstance(form, str):
            rows.append(Restructured(name, shape, before, before, 0.0, form))
            continue
        own = [p for p in form.parameters() if id(p) not in counted]
        counted |= {id(p) for p in own}  # what layers share counts once, for the first of them
        after = sum(p.numel() for p in own) - (0 if layer.bias is None else layer.bias.numel())
        rows.append(Restructured(name, shape, before, after, _error(layer.weight, form), method.name))
    replaced = {layers[name]: form for name, form in found.items() if isinstance(form, nn.Module)}
    if not replaced:
        reasons = (
            "; ".join(f"{row.name} ({row.why})" for row in rows)
            or "the model has no layers that it has a form for"
        )
        raise ValueError(f"{method.name} replaces nothing: {reasons}")
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replaced:
                device = next(child.parameters()).device
                setattr(parent, name, replaced[child].to(device).train(child.training))
    return Restructurings(tuple(rows))


@torch.no_grad()
def _error(weight: Tensor, form: nn.Module) -> float | None:
    if not isinstance(form, (StructuredLinear, CollapsibleConv2d)):
        return None
    least = torch.finfo(weight.dtype).tiny
    return float((form.dense() - weight).norm() / weight.norm().clamp(min=least))
