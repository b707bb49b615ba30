"""Which inputs share a group of n:m: an order of the channels under which such a pattern costs less.

n:m keeps n of every m *neighbours*, so who is whose neighbour matters: m important inputs in one group lose all but n. Where
the order of the inputs is free (:mod:`openwork.reordering`), they are dealt out first, as cards are, and then exchanged: of
every group one place is emptied, and all that was taken goes where it is worth most, which is a linear assignment.

Y. Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, ICLR 2024. Functions of
tensors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TOGETHER = 2**25
"""Differences that are held at a time."""


def retained(scores: Tensor, keep: int, of: int) -> float:
    """The total score that ``keep:of`` keeps.

    Args:
        scores: ``[rows, in]``, none below 0.
        keep, of: the pattern.
    """
    return float(scores.double().unflatten(1, (-1, of)).topk(keep, dim=2).values.sum())


def arranged(scores: Tensor, keep: int, of: int, *, exchanges: int = 2) -> Tensor:
    """An order of the inputs under which ``keep:of`` keeps a higher total score; never a lower one.

    Args:
        scores: ``[rows, in]``, none below 0; several layers that read the same tensor one below the other.
        keep, of: the pattern; ``in`` is a multiple of ``of``.
        exchanges: how often each of the ``of`` places is assigned anew, at most; 0 only deals. An assignment takes time with
            the cube of the number of groups.

    Returns:
        int64 ``[in]``: the channel that comes to each place. The one there is, where nothing is gained.
    """
    inputs = scores.shape[1]
    as_it_is = torch.arange(inputs, device=scores.device)
    order = max((as_it_is, dealt(scores.sum(0), of)), key=lambda o: retained(scores[:, o], keep, of))
    if not 0 < keep < of:
        return as_it_is
    best = retained(scores[:, order], keep, of)
    for _ in range(exchanges):
        before = best
        for place in range(of):
            found = _exchanged(scores, order, keep, of, place)
            value = retained(scores[:, found], keep, of)
            if value > best:
                order, best = found, value
        if best <= before * (1 + 1e-9):
            break
    return order


def dealt(importance: Tensor, of: int) -> Tensor:
    """Channels ``[in]`` dealt to groups of ``of``: the most important one to each group in turn, the next ones in the opposite
    direction, and so on.
    """
    ranked = importance.sort(descending=True, stable=True).indices.view(of, -1)
    return torch.stack([turn.flip(0) if i % 2 else turn for i, turn in enumerate(ranked)], 1).flatten()


def _exchanged(scores: Tensor, order: Tensor, keep: int, of: int, place: int) -> Tensor:
    """The best order of those that differ in one place of every group."""
    groups = order.view(-1, of)
    candidates = groups[:, place]
    others = torch.cat([groups[:, :place], groups[:, place + 1 :]], 1)
    gain = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    for part in scores.split(max(1, TOGETHER // len(groups) ** 2)):
        # what a channel adds to a group of others: by how much it exceeds the least that is kept there
        least = part[:, others].topk(keep, dim=2).values[..., -1]
        gain += (part[:, candidates, None] - least[:, None]).clamp_(min=0).sum(0).double().cpu()
    found = groups.clone()
    found[:, place] = candidates[assignment(-gain).argsort().to(order.device)]
    return found.flatten()


def assignment(cost: Tensor) -> Tensor:
    """Who takes which place, one each, such that the sum of the costs is least: int64 ``[n]`` for a cost ``[n, n]``.

    Shortest augmenting paths, one for each candidate (H. Kuhn, 1955; R. Jonker, A. Volgenant, 1987).
    """
    n = len(cost)
    prices = cost.double().cpu().numpy()
    of_row, of_column = np.zeros(n + 1), np.zeros(n + 1)
    taken_by = np.zeros(
        n + 1, dtype=np.int64
    )  # 0: free; column 0 stands for the candidate who looks for a place
    for candidate in range(1, n + 1):
        taken_by[0], column = candidate, 0
        slack, came_from = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64)
        visited = np.zeros(n + 1, dtype=bool)
        while column == 0 or taken_by[column]:
            visited[column] = True
            row = taken_by[column]
            reduced = prices[row - 1] - of_row[row] - of_column[1:]
            nearer = ~visited[1:] & (reduced < slack[1:])
            slack[1:][nearer] = reduced[nearer]
            came_from[1:][nearer] = column
            column = 1 + int(np.where(visited[1:], np.inf, slack[1:]).argmin())
            step = slack[column]
            of_row[taken_by[visited]] += step
            of_column[visited] -= step
            slack[~visited] -= step
        while column:
            taken_by[column] = taken_by[came_from[column]]
            column = int(came_from[column])
    place = np.empty(n, dtype=np.int64)
    place[taken_by[1:] - 1] = np.arange(n)
    return torch.from_numpy(place)
