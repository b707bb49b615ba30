"""Layers whose arrays take the size of what is loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn


class Resizable(nn.Module):
    """Base of layers that hold as many values as a topology has.

    torch loads arrays of the size that is there, and does not know which of them belong together. These layers look at a
    ``state_dict`` first, and make room for it.
    """

    @abstractmethod
    def _admitted(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """The state as torch can load it, now that there is room for it.

        Raises:
            ValueError: its arrays contradict each other, or do not fit; nothing has changed then.
        """

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        try:
            state_dict = self._admitted(state_dict, prefix)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
