"""One pass over a block: what each of its layers reads, summed up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openwork.dataflow import Reading
from openwork.matrices import Matrix
from openwork.statistics import Statistics


@dataclass(frozen=True)
class Wanted:
    """Which statistics to collect: what the stages of a recipe need between them."""

    gram: bool = False
    samples: int = 0


class Collection:
    """Statistics of the layers of a block, one object for layers that read the same tensor.

    Args:
        layers: of the block.
        wanted: what to sum up.
        apart: layers to keep apart although they seem to read the same tensor.
    """

    def __init__(self, layers: Sequence[Matrix], wanted: Wanted, apart: frozenset[str] = frozenset()) -> None:
        self._layers, self._wanted, self._apart = list(layers), wanted, apart
        self._leader: dict[str, str] = {}
        self._statistics: dict[str, Statistics] = {}

    def __getitem__(self, layer: Matrix) -> Statistics:
        """Statistics of a layer. For an expert that no token chose, while others were, they say that all inputs are alike.

        Raises:
            ValueError: nothing was seen to go through the parameter.
        """
        leader = self._leader.get(layer.name)
        if leader is not None and self._statistics[leader].count:
            return self._statistics[leader]
        if not any(other.weight is layer.weight and other.name in self._leader for other in self._layers):
            raise ValueError(
                f"no batch of the calibration data was seen to go through {layer.weight.name}: "
                f"exclude it, exclude=({layer.weight.name!r},)"
            )
        return Statistics.of_unit_inputs(layer.matrix_shape[1], **self._options(layer))

    def sequence(self) -> list[list[Matrix]]:
        """The layers in groups, in the order in which they read: a group reads the same tensor. All experts of one fused
        weight are one group.
        """
        of: dict[str, int] = {}
        groups: dict[int, list[Matrix]] = {}
        named = {layer.name: layer for layer in self._layers}
        for name, leader in self._leader.items():
            layer = named[name]
            key = of.get(named[leader].weight.name, of.get(layer.weight.name, len(of)))
            of.setdefault(layer.weight.name, key)
            groups.setdefault(key, []).append(layer)
        never = [layer for layer in self._layers if layer.name not in self._leader]
        for layer in never:
            key = of.get(layer.weight.name, len(of))
            of.setdefault(layer.weight.name, key)
            groups.setdefault(key, []).append(layer)
        return list(groups.values())

    def run(self, batch: int, tokens: Tensor | None, forward: Callable[[], Any]) -> Any:
        """Run ``forward`` and add up what the layers read meanwhile; returns what it returns.

        Raises:
            ValueError: a layer reads NaN or infinity.
            Parted: two layers that read the same tensor in earlier batches do so no more: begin again and keep them apart.
        """
        read: dict[str, set[tuple[Any, ...]]] = {}
        first: dict[tuple[Any, ...], str] = {}

        def reader(layer: Matrix, rows: Tensor, key: tuple[Any, ...]) -> None:
            name = layer.name
            if name in self._apart:
                key = (*key, name)
            read.setdefault(name, set())
            leader = self._leader.setdefault(name, first.get(key, name))
            if leader == name and key not in read[name]:
                if name not in self._statistics:
                    self._statistics[name] = Statistics(layer.matrix_shape[1], **self._options(layer))
                total = self._statistics[name]
                total.add(rows)
                if not bool(total.mean.isfinite().all()):
                    raise ValueError(
                        f"{name} reads NaN or infinity in batch {batch} of the calibration data: nothing was changed; look at "
                        "the data, and at the layers before it"
                    )
            first.setdefault(key, leader)
            read[name].add(key)

        with Reading(self._layers, reader, tokens):
            result = forward()
        parted = {name for name, leader in self._leader.items() if read.get(name) != read.get(leader)}
        if parted:
            raise Parted(frozenset(parted | {self._leader[name] for name in parted}))
        return result

    def _options(self, layer: Matrix) -> dict[str, Any]:
        parameter = layer.weight.parameter
        return {
            "gram": self._wanted.gram,
            "samples": self._wanted.samples,
            "dtype": torch.float64 if parameter.dtype == torch.float64 else torch.float32,
            "device": parameter.device,
        }


class Parted(Exception):
    """Layers that seemed to read the same tensor do not."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(f"{', '.join(sorted(names))} do not always read the same tensor")
        self.names = names
