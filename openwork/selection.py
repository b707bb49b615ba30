"""Which connections of a whole model stay when so many may: the strongest, or the best by any score, split among its parameters.

A method that prunes gradually asks this at every pruning; what it does with the answer (prune, shrink, prune for a while)
is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from openwork.allocation import allocation, exact_counts
from openwork.connections import Connections
from openwork.plan import Plan, wanted_total
from openwork.positions import where


def final_count(size: int, final: int) -> int:
    """What is kept in the end."""
    return final


def strongest(
    plan: Plan, connections: Mapping[str, Connections], kept_now: Callable[[int, int], int] = final_count
) -> list[tuple[Connections, Tensor]]:
    """The connections of largest magnitude, as many as the plan's method asks for, split by its allocation as of now.

    Args:
        plan: parameters, patterns and final counts.
        connections: the present connections of each parameter of the plan.
        kept_now: ``(size, final) -> kept``: how many of ``size`` connections stay now, where ``final`` stay in the end.

    Returns:
        Pairs of connections and a boolean over their active places (:meth:`Connections.atoms`), True = stays. Counts are
        exact, ties included. Nothing is changed.
    """
    rows = [row for row in plan.sparse if not row.fixed]
    size = sum(row.numel for row in rows)
    total = kept_now(size, wanted_total(plan.method, size)) if size else 0
    active = [connections[row.name] for row in rows]
    caps = [c.kept for c in active]
    counts = allocation(plan.method.allocation).counts(
        [row.shape for row in rows], min(total, sum(caps)), [c.values.abs() for c in active]
    )
    # Rounded shares may rise by one while the total falls; what is gone stays gone, so another parameter keeps it.
    counts = exact_counts(counts, caps, sum(counts))
    wanted = dict(zip((row.name for row in rows), counts, strict=True))
    left = []
    for row in plan.sparse:
        c = connections[row.name]
        kept = wanted.get(row.name, kept_now(row.numel, row.kept))
        left.append((c, c.strongest_legal(min(kept, c.kept))))
    return left


def best(
    plan: Plan,
    scores: Mapping[str, Tensor],
    kept_now: Callable[[int, int], int] = final_count,
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The connections of highest score wherever they are, active or not, split by the allocation of the plan's method.

    Args:
        plan: parameters, patterns and final counts.
        scores: ``[out, in, *kernel]`` of every parameter of the plan, by name; higher = keep.
        kept_now: as in :func:`strongest`.
        within: masks ``[out, in, *kernel]`` by name, outside of which none is chosen; then at most as many as they have.

    Returns:
        Parameter name -> sorted positions. Counts are exact, ties included.
    """
    rows = [row for row in plan.sparse if not row.fixed]
    size = sum(row.numel for row in rows)
    caps = {row.name: row.numel if within is None else int(within[row.name].sum()) for row in plan.sparse}
    room = [caps[row.name] for row in rows]
    total = min(kept_now(size, wanted_total(plan.method, size)) if size else 0, sum(room))
    counts = allocation(plan.method.allocation).counts(
        [row.shape for row in rows], total, [scores[row.name] for row in rows]
    )
    wanted = dict(zip((row.name for row in rows), exact_counts(counts, room, total), strict=True))
    found = {}
    for row in plan.sparse:
        kept = min(wanted.get(row.name, kept_now(row.numel, row.kept)), caps[row.name])
        score = scores[row.name]
        ranked = score if within is None else score.masked_fill(~within[row.name], -math.inf)
        found[row.name] = where(row.pattern.choose(ranked, kept))
    return found
