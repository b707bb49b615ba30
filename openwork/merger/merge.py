"""All deltas, thinned, added to the base: one model of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.deltas import added
from openwork.merger.contract import Merging
from openwork.merger.matching import State, matched, merge_buffers, state_of
from openwork.merger.thinning import Thinning
from openwork.method import require_kind
from openwork.progress import track
from openwork.weights import unwrapped


@dataclass(frozen=True)
class MergedRow:
    """One parameter of what :func:`merge_` did.

    Attributes:
        name: of the parameter.
        shape: of it.
        kept: how many places each model's delta kept.
        of: places that could have been kept.
        size: root mean square of each delta before anything was dropped.
    """

    name: str
    shape: tuple[int, ...]
    kept: tuple[int, ...]
    of: int
    size: tuple[float, ...]


@dataclass(frozen=True)
class Merged:
    """The table of :func:`merge_`. Print it, or iterate over its rows.

    Attributes:
        method: that was used.
        rows: one for each parameter.
        zeros: changes that were left out because they fell on zeros of the base.
    """

    method: Merging
    rows: tuple[MergedRow, ...]
    zeros: int

    def __iter__(self) -> Iterator[MergedRow]:
        return iter(self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{row.name.ljust(width)}  {'x'.join(map(str, row.shape))}  kept {' '.join(map(str, row.kept))} of {row.of}  "
            f"size {' '.join(f'{size:.3g}' for size in row.size)}"
            for row in self.rows
        ]
        left = f"; {self.zeros} changes fell on zeros of the base and were left out" if self.zeros else ""
        kept, of = sum(sum(row.kept) for row in self.rows), sum(len(r.kept) * r.of for r in self.rows)
        return "\n".join([*lines, f"{self.method.name}: {kept} of {of} changes kept{left}"])


@torch.no_grad()
def merge_(
    model: nn.Module,
    tuned: Sequence[nn.Module | State],
    method: Merging,
    *,
    weights: Sequence[float] | None = None,
    keep_zeros: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> Merged:
    """Add what fine-tuned models have learned to the ``model`` that they began from, in place.

    Buffers of floating point, such as the statistics of batch norms, become the mean of those of the tuned models.

    Args:
        model: the base of all of them.
        tuned: the fine-tuned models, or their ``state_dict``; not changed.
        method: how deltas are thinned and put together, such as ``ow.DARE(sparsity=0.9)``.
        weights: a factor for each model's delta; 1 each by default.
        keep_zeros: leave the zeros of the base's weight matrices zero, so that a sparse base stays as sparse.
        inputs: parameter name -> mean square of every input, see :func:`openwork.merging.inputs.layer_inputs`: where the largest
            changes are kept, they count times its root, so by what they do to the outputs.

    Returns:
        The table of what was done.

    Raises:
        TypeError: the method does not merge.
        ValueError: the models do not have the same parameters in the same shapes, hold NaN or infinity, or layers that hold only
            their kept connections; or a glob matches nothing. The model has not changed then.
    """
    require_kind(method, Merging, "does not merge models: use DARE, TIES or TaskArithmetic")
    model = unwrapped(model)
    state_of(model)  # refuses what cannot be a base
    states = [state_of(other) for other in tuned]
    factors = [1.0] * len(states) if weights is None else list(weights)
    if not states or len(factors) != len(states):
        raise ValueError(
            f"give one tuned model or more, and a weight for each: got {len(states)} and {len(factors)}"
        )
    thinnings = [
        Thinning(
            method,
            model,
            matched(model, s, f"tuned model {i + 1}"),
            number=i,
            keep_zeros=keep_zeros,
            inputs=inputs,
        )
        for i, s in enumerate(states)
    ]
    rows, zeros, merged = [], 0, {}
    for name, p in track(list(model.named_parameters()), "merging"):
        found = [thinning.left(name) for thinning in thinnings]
        change = method.scale * method.combine(
            [w * left.change for w, left in zip(factors, found, strict=True)]
        )
        sizes = tuple(left.size for left in found)
        rows.append(MergedRow(name, tuple(p.shape), tuple(left.kept for left in found), found[0].of, sizes))
        zeros += sum(left.zeros for left in found)
        merged[name] = added(p, change)
    for name, p in model.named_parameters():
        p.copy_(merged[name])
    merge_buffers(model, states)
    return Merged(method, tuple(rows), zeros)
