"""Layers whose weight is codes: what they share, whatever the codes mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor

from openwork.layouts.resizable import Resizable


class CodedLinear(Resizable):
    """Base of linear layers for inference whose buffers are codes and what decodes them.

    Another device takes all of it along. Another precision is that of the bias alone: codes and scales would mean something
    else in it.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device)
        return self
