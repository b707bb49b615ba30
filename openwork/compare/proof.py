"""Save one trained network, load it again, pack and time what was loaded: what can be claimed of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from openwork.compare.contest import Trained
from openwork.compare.measure import forward_latencies, parameter_bytes
from openwork.compare.table import Speed
from openwork.files import load, save
from openwork.pack import pack_

_MILLI = 1e3


@dataclass(frozen=True)
class Proof:
    """What was measured on a network that went through a file.

    Attributes:
        file_bytes: of the file.
        parameter_bytes: of the loaded model, see :func:`openwork.compare.measure.parameter_bytes`.
        latency_ms: batch size -> forward pass.
        layouts: batch size -> layer -> layout.
    """

    file_bytes: int
    parameter_bytes: int
    latency_ms: Mapping[int, Speed]
    layouts: Mapping[int, Mapping[str, str]]


class Bench:
    """Where networks of one architecture are timed against the fastest dense one there is.

    Args:
        dense: a dense network of the architecture; not changed.
        inputs: examples ``[n, ...]``, at least as many as the largest batch.
        batches: sizes of batch to time.
        seconds: to spend on each measurement, about.
    """

    def __init__(
        self, dense: nn.Module, inputs: Tensor, batches: Sequence[int], *, seconds: float = 0.2
    ) -> None:
        if len(inputs) < max(batches):
            raise ValueError(f"batches of {max(batches)} need as many examples; found {len(inputs)}")
        self.inputs, self.batches, self.seconds = inputs, tuple(batches), seconds
        packed = copy.deepcopy(dense)
        pack_(packed, self.batch(min(batches)), batches=self.batches, seconds=seconds)
        self.dense = {batch: self._faster(batch, [copy.deepcopy(dense), packed]) for batch in self.batches}

    def batch(self, size: int) -> Tensor:
        """The first ``size`` examples."""
        return self.inputs[:size]

    def prove(self, trained: Trained, fresh: nn.Module) -> Proof:
        """Save, load, pack and time a network.

        Args:
            trained: the network; not changed.
            fresh: a new dense model of the architecture with other weights, to load the file into.

        Raises:
            RuntimeError: the loaded network computes something else than the saved one.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save(trained.model, path)
            size = path.stat().st_size
            loaded = load(path, into=fresh).eval()
        with torch.no_grad():
            if not torch.equal(loaded(self.inputs), trained.model(self.inputs)):
                raise RuntimeError(
                    f"{trained.contestant} computes something else after it was saved and loaded"
                )
        stored_bytes = parameter_bytes(loaded)
        decisions = pack_(loaded, self.batch(min(self.batches)), batches=self.batches, seconds=self.seconds)
        return Proof(
            file_bytes=size,
            parameter_bytes=stored_bytes,
            latency_ms={batch: self._speed(loaded, batch) for batch in self.batches},
            layouts={
                batch: {row.layer: row.layout for row in decisions if row.batch == batch}
                for batch in self.batches
            },
        )

    def _faster(self, batch: int, models: Sequence[nn.Module]) -> nn.Module:
        contenders = {str(i): model for i, model in enumerate(models)}
        timed = forward_latencies(contenders, self.batch(batch), seconds=self.seconds)
        return contenders[min(timed, key=lambda name: timed[name].median)]

    def _speed(self, packed: nn.Module, batch: int) -> Speed:
        contenders = {"dense": self.dense[batch], "packed": packed}
        timed = forward_latencies(contenders, self.batch(batch), seconds=self.seconds)
        dense, mine = timed["dense"], timed["packed"]
        return Speed(
            dense=dense.median * _MILLI,
            packed=mine.median * _MILLI,
            dense_spread=(dense.low * _MILLI, dense.high * _MILLI),
            packed_spread=(mine.low * _MILLI, mine.high * _MILLI),
        )
