"""Which places have held a connection so far, and how often.

A network that moves its connections tries many more than it has at any time. The record of one parameter is an int64 tensor
``[2, n]``: the sorted places that were ever active, and in how many topologies each was. It grows with what is
explored, not with the size of the weight, so it serves both storages.

Places are numbered as in :class:`openwork.grid.Grid`. Everything here is a pure function; nothing is changed in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.positions import located, merged


def unexplored(device: torch.device) -> Tensor:
    """The record of a parameter of which nothing was tried."""
    return torch.empty(2, 0, dtype=torch.int64, device=device)


def explored(record: Tensor, active: Tensor) -> Tensor:
    """The record after one more topology, whose sorted ``active`` places count once more."""
    places, counts = record
    new = active[~located(places, active)[1]]
    together = merged(places, new)
    times = torch.zeros_like(together)
    times[located(together, places)[0]] = counts
    times[located(together, active)[0]] += 1
    return torch.stack([together, times])


def times_tried(record: Tensor, first: int, count: int) -> Tensor:
    """In how many topologies each of ``count`` consecutive places was, from place ``first`` on: int64 ``[count]``."""
    places, counts = record
    low, high = torch.searchsorted(
        places, torch.tensor([first, first + count], device=places.device)
    ).tolist()
    times = torch.zeros(count, dtype=torch.int64, device=places.device)
    times[places[low:high] - first] = counts[low:high]
    return times


def rate(record: Tensor, size: int, least: int = 1) -> float:
    """The fraction of ``size`` places that were tried at least ``least`` times."""
    return int((record[1] >= least).sum()) / size
