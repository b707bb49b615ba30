"""Connections of a dense parameter that is sharded over processes (FSDP2): each process masks the part that it holds."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from openwork.connections.masked import MaskedConnections


class ShardedConnections(MaskedConnections):
    """A parameter that ``fully_shard`` has made a ``DTensor``, under a mask.

    Mask, remembered gradients and optimizer state are sharded like the parameter. Topologies are chosen over whole
    parameters, so an update brings each one together for a moment, one after the other, and every process takes
    the same decision. Whoever asks for positions, values or masks therefore asks in all processes at once.
    """

    _kept: int | None = None

    @property
    def kept(self) -> int:
        """Number of active connections, known without asking the other processes."""
        return self.numel if self._kept is None else self._kept

    @property
    def device(self) -> torch.device:
        return self._held(self.weight.parameter).device

    @property
    def positions(self) -> Tensor:
        """Brought together anew each time: kept, they would take more room than a shard."""
        self._positions = None
        return super().positions

    def write(self, positions: Tensor, values: Tensor) -> None:
        whole = self._whole(self._held(self.weight.parameter)).clone()
        self.weight.oriented(whole)[torch.unravel_index(positions, self.weight.shape)] = values.to(
            whole.dtype
        )
        self._held(self.weight.parameter).copy_(self._shard(whole))

    def gradient_at(self, places: Tensor) -> Tensor:
        return self._at(self._whole(self._local_gradient()), places).abs()

    def _mean_gradient(self) -> Tensor:
        return self._local_gradient()  # sharding has averaged it already

    def _set(self, positions: Tensor) -> None:
        self._kept = positions.numel()
        whole = torch.ones(self.weight.parameter.shape, dtype=torch.bool, device=self.device)
        self.weight.oriented(whole)[torch.unravel_index(positions, self.weight.shape)] = False
        self.inactive.copy_(self._shard(whole))

    def _is_linear(self, module: nn.Module) -> bool:
        return type(module).__bases__ == (FSDPModule, nn.Linear)  # what fully_shard makes of a linear layer

    def _held(self, tensor: Tensor) -> Tensor:
        return cast(DTensor, tensor.detach()).to_local()

    def _whole(self, held: Tensor) -> Tensor:
        like = cast(DTensor, self.weight.parameter)
        together = DTensor.from_local(
            held, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
        return together.full_tensor()

    def _shard(self, whole: Tensor) -> Tensor:
        """What this process holds of a tensor that all of them have."""
        like = cast(DTensor, self.weight.parameter)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()
