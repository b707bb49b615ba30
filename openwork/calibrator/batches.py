"""Calibration data: what the model is called with, and which tokens count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


class Batches(Sequence[Any]):
    """Calibration batches.

    Args:
        data: batches. A tensor, or a dict of keyword arguments, is the model's input itself; a tuple or list is
            ``(inputs, targets)``, whose targets are not looked at (so several positional arguments are ``((a, b), None)``). Where
            inputs are a dict with ``"attention_mask" [n, length]``, tokens marked 0 are padding.

    Raises:
        ValueError: there is no batch, or one is of another form.
    """

    def __init__(self, data: Iterable[Any] | None) -> None:
        self._inputs = [_inputs(batch, index) for index, batch in enumerate(data or ())]
        if not self._inputs:
            raise ValueError(
                "calibration needs data=, an iterable of batches, and was given none: give at least one"
            )

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: Any) -> Any:
        return self._inputs[index]

    def tokens(self, index: int) -> Tensor | None:
        """Boolean ``[n, length]`` of the tokens that count in a batch, or None where all do."""
        inputs = self._inputs[index]
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        return mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _inputs(batch: Any, index: int) -> Any:
    if isinstance(batch, (Tensor, Mapping)):
        return batch
    if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2:
        return batch[0]
    many = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise ValueError(
        f"batch {index} of the calibration data is a {type(batch).__name__}{many}: give a tensor, a dict of keyword "
        "arguments, or a pair (inputs, targets)"
    )
