"""A total as whole numbers: real shares rounded, cut at dense, and the factor that meets the total."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def exact_counts(wanted: Sequence[float], caps: Sequence[int], total: int) -> list[int]:
    """Round ``wanted`` counts to integers that sum to exactly ``total`` and respect ``caps`` (largest remainder first,
    ties to the first parameter).

    Raises:
        ValueError: ``total`` does not lie between 0 and the sum of ``caps``.
    """
    if not 0 <= total <= sum(caps):
        raise ValueError(f"cannot keep {total} of {sum(caps)} connections")
    counts = [min(max(math.floor(w + 1e-9), 0), cap) for w, cap in zip(wanted, caps, strict=True)]
    order = sorted(range(len(caps)), key=lambda i: (counts[i] - wanted[i], i))
    missing = total - sum(counts)
    while missing:
        step = 1 if missing > 0 else -1
        for i in order if step > 0 else reversed(order):
            if missing and 0 <= counts[i] + step <= caps[i]:
                counts[i] += step
                missing -= step
    return counts


def proportional(raw: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Counts ``min(size, factor * raw * size)`` that sum to ``total``.

    A layer whose share would exceed its size is dense, and what it cannot hold goes to the others. Each round makes the
    layers of largest ``raw`` dense and solves the factor for the rest again; at most one round a layer.
    """
    dense: set[int] = set()
    while True:
        open_layers = [i for i in range(len(sizes)) if i not in dense]
        left = total - sum(sizes[i] for i in dense)
        weight = sum(raw[i] * sizes[i] for i in open_layers)
        factor = left / weight if weight else 0.0
        overfull = [i for i in open_layers if factor * raw[i] > 1.0 + 1e-12]
        if not overfull:
            wanted = [
                float(sizes[i]) if i in dense else factor * raw[i] * sizes[i] for i in range(len(sizes))
            ]
            return exact_counts(wanted, sizes, total)
        highest = max(raw[i] for i in overfull)
        dense.update(i for i in overfull if raw[i] == highest)


def bisect(total_at: Callable[[float], float], target: float) -> float:
    """The x in [0, 1] where an increasing function reaches ``target``."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if total_at(middle) < target else (low, middle)
    return high
