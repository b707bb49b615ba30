"""What will be sparse, how sparse, and why: the table shown before anything changes.

:func:`plan` walks a model, decides which parameters a method may thin, and gives each an exact number of kept connections.
It is printed for people, and every verb works from it, so what is shown is what is done.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from openwork.allocation import allocation
from openwork.grid import Shape
from openwork.layouts.layer import SparseLayer
from openwork.method import Method
from openwork.patterns import Pattern, Unstructured, pattern
from openwork.weights import Weight, prunable


@dataclass(frozen=True)
class Row:
    """One line of a plan: a parameter, its pattern, how many connections it keeps, and why."""

    weight: Weight
    pattern: Pattern
    kept: int
    why: str
    sparse: bool
    fixed: bool = False
    """Whether its count is its own (an override, a stored topology) instead of a share of the total."""

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def shape(self) -> Shape:
        return self.weight.shape

    @property
    def numel(self) -> int:
        return math.prod(self.weight.shape)

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / self.numel


@dataclass(frozen=True)
class Plan:
    """The table ``parameter -> (pattern, kept, why)`` of one model and method. Print it, or iterate over its rows."""

    method: Method
    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def sparse(self) -> tuple[Row, ...]:
        """The rows that the method works on."""
        return tuple(row for row in self.rows if row.sparse)

    @property
    def numel(self) -> int:
        """Connections in the parameters the method works on, before it does."""
        return sum(row.numel for row in self.sparse)

    @property
    def kept(self) -> int:
        """Connections that those keep."""
        return sum(row.kept for row in self.sparse)

    @property
    def sparsity(self) -> float:
        """Achieved sparsity over the parameters the method works on."""
        return 1.0 - self.kept / self.numel if self.numel else 0.0

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of the parameters that keep nothing: what comes after them does not see the input."""
        return tuple(row.name for row in self.sparse if not row.kept)

    @property
    def asked(self) -> str:
        """What was asked for, in words."""
        if self.method.reads_zeros:
            return "the zeros of the model"
        return (
            f"{self.method.kept} kept"
            if self.method.kept is not None
            else f"sparsity {self.method.sparsity:g}"
        )

    def __str__(self) -> str:
        header = ("parameter", "shape", "pattern", "sparsity", "density", "kept", "of", "why")
        lines = [
            (
                row.name,
                "x".join(map(str, row.shape)),
                str(row.pattern) if row.sparse else "-",
                f"{row.sparsity:.4f}",
                f"{1 - row.sparsity:.4f}",
                str(row.kept),
                str(row.numel),
                row.why,
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        numeric = {3, 4, 5, 6}
        table = [
            "  ".join(
                cell.rjust(w) if i in numeric else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in [header, *lines]
        ]
        total = f"{self.method.name}: asked {self.asked}; sparsity {self.sparsity:.6f}, {self.kept} of {self.numel} kept"
        return "\n".join([*(line.rstrip() for line in table), total, *map(collapse, self.collapsed)])


def collapse(name: str) -> str:
    """What to say of a parameter without a connection."""
    return f"{name} keeps no connection, so nothing passes it: ask for less sparsity, exclude it, or choose another allocation"


def plan(model: nn.Module, method: Method, scores: Mapping[str, Tensor] | None = None) -> Plan:
    """What ``method`` would make of ``model``. Nothing is changed.

    Norms, biases, embeddings and heads tied to them stay dense, each with the reason, and so do frozen weights (those without
    ``requires_grad``) where the method works during training; ``method.include``, ``method.exclude`` and ``method.overrides``
    (globs of parameter names) change that. A frozen weight that is included becomes sparse, and is never rewired. Layers that
    hold only their kept connections already keep the topology they have, and the others get what they would if all were
    allocated together.

    Args:
        model: any module; a compiled or data-parallel one is looked through.
        method: what to do.
        scores: name -> scores of the weight's shape, for allocations that rank; magnitudes by default.

    Raises:
        ValueError: a glob matches no parameter, nothing is left to make sparse, or the total cannot be met.
    """
    weights = prunable(model)
    _globs_must_match(method, [w.name for w in weights])
    chosen = Unstructured() if method.reads_zeros else pattern(method.pattern)
    dense: dict[str, str] = {}
    fixed: dict[str, int] = {}
    shared: list[Weight] = []
    for w in weights:
        override = _override(method, w.name)
        if _matches(w.name, method.exclude):
            dense[w.name] = "excluded: by name"
        elif w.reason and not _matches(w.name, method.include) and override is None:
            dense[w.name] = f"excluded: {w.reason}"
        elif override == 0.0:
            dense[w.name] = "override: dense"
        elif _frozen(w, method) and not _matches(w.name, method.include) and override is None:
            dense[w.name] = "excluded: frozen"
        elif method.reads_zeros:
            fixed[w.name] = int(w.parameter.detach().count_nonzero())
        elif reason := chosen.misfit(w.shape):
            dense[w.name] = f"dense: {chosen} does not fit, {reason}"
        elif override is not None:
            fixed[w.name] = round((1.0 - override) * math.prod(w.shape))
        else:
            shared.append(w)
    if not shared and not fixed:
        reasons = "; ".join(f"{name} ({why})" for name, why in dense.items()) or "the model has no weights"
        raise ValueError(
            f"{method.name} finds nothing to make sparse: {reasons}. Use include=('glob',) to add a parameter by name"
        )
    counts = dict(zip((w.name for w in shared), _allocate(method, shared, scores), strict=True))
    fixed |= {
        w.name: w.parameter.numel()
        for w in weights
        if w.stored and w.name not in dense and not method.shrinks
    }
    rows = []
    for w in weights:
        size = math.prod(w.shape)
        if w.name in dense:
            rows.append(Row(w, chosen, w.parameter.numel(), dense[w.name], sparse=False))
            continue
        wanted = fixed.get(w.name, counts.get(w.name, size))
        as_it_is = w.name in fixed and (w.stored or method.reads_zeros)
        own = chosen if as_it_is else chosen.settled(w.shape, wanted)
        kept = wanted if as_it_is else own.legal_kept(w.shape, wanted)
        rows.append(
            Row(
                w, own, kept, _why(w, method, kept, size, w.name in fixed), sparse=True, fixed=w.name in fixed
            )
        )
    return Plan(method, tuple(rows))


def wanted_total(method: Method, size: int) -> int:
    """How many of ``size`` connections the method is asked to keep.

    Raises:
        ValueError: more are asked for than there are.
    """
    total = round((1.0 - method.sparsity) * size) if method.kept is None else method.kept
    if not 0 <= total <= size:
        raise ValueError(
            f"kept={total} was asked for, and the parameters to make sparse have {size} connections in all"
        )
    return total


def _allocate(method: Method, weights: Sequence[Weight], scores: Mapping[str, Tensor] | None) -> list[int]:
    if not weights:
        return []
    shapes = [w.shape for w in weights]
    total = wanted_total(method, sum(math.prod(shape) for shape in shapes))
    rule = allocation(method.allocation)
    ranked = None
    if rule.needs_scores:
        ranked = [scores[w.name] if scores is not None else _magnitudes(w) for w in weights]
    return rule.counts(shapes, total, ranked)


def _magnitudes(weight: Weight) -> Tensor:
    held = (
        weight.module.weight
        if isinstance(weight.module, SparseLayer)
        else weight.oriented(weight.parameter.detach())
    )
    return held.abs()


def _why(weight: Weight, method: Method, kept: int, size: int, fixed: bool) -> str:
    if fixed and weight.stored:
        return "stored topology"
    if fixed:
        return "zeros of the model" if method.reads_zeros else "override"
    label = (
        method.allocation if isinstance(method.allocation, str) else type(method.allocation).__name__.lower()
    )
    label = f"capped dense by {label}" if kept == size and method.sparsity > 0 else label
    return f"{label}; frozen: not rewired" if _frozen(weight, method) else label


def _frozen(weight: Weight, method: Method) -> bool:
    """Whether nothing will train a weight that the method wants to work on."""
    return method.trains and not method.reads_zeros and not weight.parameter.requires_grad


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _override(method: Method, name: str) -> float | None:
    """The last matching override wins, as in a list of rules."""
    found = None
    for glob, sparsity in method.overrides.items():
        if fnmatchcase(name, glob):
            found = sparsity
    return found


def _globs_must_match(method: Method, names: list[str]) -> None:
    for option in ("include", "exclude", "overrides"):
        globs = getattr(method, option)
        if isinstance(globs, str):
            raise ValueError(
                f"{option} is a tuple of globs, got the string {globs!r}: write {option}=({globs!r},)"
            )
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                near = difflib.get_close_matches(glob, names, n=3, cutoff=0.0)
                raise ValueError(
                    f"{option}: {glob!r} matches no parameter that could be sparse; the nearest names are "
                    f"{', '.join(near) or 'none'}"
                )
