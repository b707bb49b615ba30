"""Deciding what a method will work on, and how much each parameter keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from openwork.allocation import allocation
from openwork.layouts.layer import SparseLayer
from openwork.method import Method, require_kind
from openwork.patterns import Pattern, Unstructured, pattern
from openwork.plan import globs
from openwork.plan.table import Plan, Row
from openwork.weights import Weight, prunable


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
        TypeError: the model is no module, or the method no method.
        ValueError: a glob matches no parameter, nothing is left to make sparse, or the total cannot be met.
    """
    require_kind(method, Method, "")
    weights = prunable(model)
    globs.must_match(method, [w.name for w in weights])
    chosen = Unstructured() if method.reads_zeros else pattern(method.pattern)
    dense: dict[str, str] = {}
    fixed: dict[str, int] = {}
    shared: list[Weight] = []
    for w in weights:
        if reason := _dense(w, method, chosen):
            dense[w.name] = reason
        elif method.reads_zeros:
            fixed[w.name] = int(w.parameter.detach().count_nonzero())
        elif (override := globs.override(method, w.name)) is not None:
            fixed[w.name] = round((1.0 - override) * math.prod(w.shape))
        else:
            shared.append(w)
    if not shared and not fixed:
        reasons = "; ".join(f"{name} ({why})" for name, why in dense.items()) or "the model has no weights"
        unfit = any(" does not fit, " in why for why in dense.values())
        advice = "Choose a pattern that fits" if unfit else "Use include=('glob',) to add a parameter by name"
        raise ValueError(f"{method.name} finds nothing to make sparse: {reasons}. {advice}")
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


def _dense(weight: Weight, method: Method, chosen: Pattern) -> str:
    """Why a weight stays dense; empty where the method works on it."""
    override = globs.override(method, weight.name)
    named = override is not None or globs.matches(weight.name, method.include)
    if globs.matches(weight.name, method.exclude):
        return "excluded: by name"
    if weight.reason and not named:
        return f"excluded: {weight.reason}"
    if override == 0.0:
        return "override: dense"
    if _frozen(weight, method) and not named:
        return "excluded: frozen"
    if not method.reads_zeros and (misfit := chosen.misfit(weight.shape)):
        return f"dense: {chosen} does not fit, {misfit}"
    return ""


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
