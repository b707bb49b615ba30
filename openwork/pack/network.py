"""A packed network: its steps in a row, in memory of its own, images in the order of the kernels from layer to layer.

:func:`openwork.pack_` gives a model such a network where that is faster than calling layer after layer. The model stays
what it is: its modules, its ``state_dict`` and its ``forward`` are all there, and ``forward`` is called wherever a network
does not apply: in training mode, for images of another size, in another precision, or while something listens to a module
inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.kernels import native
from openwork.kernels.blocked import block_shape
from openwork.pack.graph import Reader, traced
from openwork.pack.places import Values, filled, places
from openwork.pack.steps import Conv, Plain, Step

SIZES_KEPT = 4
"""Numbers of images for which memory is kept."""


@dataclass(frozen=True, eq=False)
class Room:
    """Memory for what is computed on the way.

    Attributes:
        values: where results go; None where a call brings the memory along.
        calls: for each step a call that is ready to compute in this memory, or None.
    """

    values: Values
    calls: list[Callable[[], None] | None]


class Network:
    """The steps of a model for images of one size.

    Memory for what is computed on the way is kept between calls, once for each of the latest numbers of images and each thread
    that calls at the same time: asking the system for it anew costs more time than many a layer.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, layers: Mapping[nn.Module, bool], reader: Reader
    ) -> None:
        self.model, self.size = model, tuple(example.shape[1:])
        self.layers = layers
        self.outputs = reader.read()
        self.steps = reader.steps
        self.count = 1 + max((step.to for step in self.steps), default=0)
        self.last_use = self._last_use()
        convolutions = [step for step in self.steps if isinstance(step, Conv)]
        modules = [m for step in convolutions for m in (step.layer, step.norm) if m is not None]
        self._state = [held for m in modules for held in (m._parameters, m._buffers)]
        self._written = self._versions()
        self._idle: dict[tuple[int, int], list[Room]] = {}
        self._hold()

    @classmethod
    def of(cls, model: nn.Module, example: Tensor, layers: Mapping[nn.Module, bool]) -> Network | None:
        """The network of a model, or None where the model cannot be traced or none of its convolutions is among ``layers``.

        Args:
            model: packed.
            example: images.
            layers: convolutions to run in our kernels: with 16 images side by side (True), or 16 pixels (False).
        """
        return next(cls.each(model, example, [layers]))

    @classmethod
    def each(
        cls, model: nn.Module, example: Tensor, forms: Iterable[Mapping[nn.Module, bool]]
    ) -> Iterator[Network | None]:
        """As :meth:`of` for several choices of ``layers``, tracing the model once."""
        graph = traced(model, example)
        for layers in forms:
            reads = graph is not None and bool(layers)
            yield cls(model, example, layers, Reader(model, graph, layers)) if reads and graph else None

    def __call__(self, x: Tensor) -> Any:
        """The outputs of the model for ``x [images, ...]``, which must fit (:meth:`fits`)."""
        if self._written != (written := self._versions()):  # another state was loaded
            self._hold()
            self._written = written
        images = x.shape[0]
        key = images, native.threads(native.SERIAL_WORK)  # calls that are ready say how many threads
        idle = self._idle.setdefault(key, [])
        if len(self._idle) > SIZES_KEPT:
            del self._idle[next(iter(self._idle))]
        room = idle.pop() if idle else self._room(images)
        values = list(room.values)
        values[0] = x
        for step, call in zip(self.steps, room.calls, strict=True):
            if call is not None:
                call()
                continue
            if values[step.to] is None and step.owned:
                values[step.to] = torch.empty(self._shape(step, images))
            step.run(values, images)
        idle.append(room)
        return filled(self.outputs, values)

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and what is saved, get memory of their own."""
        return {**vars(self), "_idle": {}}

    def fits(self, x: Any) -> bool:
        """Whether the network computes what the model would."""
        return (
            isinstance(x, Tensor)
            and x.dtype is torch.float32
            and x.is_cpu
            and tuple(x.shape[1:]) == self.size
            and x.shape[0] > 0
            and not (torch.is_grad_enabled() and x.requires_grad)
            and not torch.is_autocast_enabled("cpu")
            and not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in self._called)
        )

    def _hold(self) -> None:
        self._called = [m for m in self.model.modules() if m is not self.model]
        self._idle = {}  # calls that are ready compute with the weights of before
        for step in self.steps:
            if isinstance(step, Conv):
                step.hold()

    def _versions(self) -> list[tuple[int, int]]:
        """How often each tensor was written to that a convolution computes with."""
        tensors = [t for held in self._state for t in held.values() if t is not None]
        try:
            return [(t.data_ptr(), t._version) for t in tensors]
        except RuntimeError:  # tensors made in inference mode are never written to
            return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]

    # Memory.

    def _last_use(self) -> list[int]:
        """For each value the last step that reads it; beyond all steps for outputs."""
        last = [0] * self.count
        for i, step in enumerate(self.steps):
            for place in step.reads():
                last[place] = i
        for output in places(self.outputs):
            last[output.at] = len(self.steps)
        return last

    def _memory(self, images: int) -> Values:
        """Room for the values that only steps of ours read; a value that is dead lends its room to the next one."""
        outside = {place for step in self.steps if isinstance(step, Plain) for place in step.reads()}
        outside |= {output.at for output in places(self.outputs)}
        values: Values = [None] * self.count
        room: dict[int, Tensor] = {}
        free: list[Tensor] = []
        for i, step in enumerate(self.steps):
            if step.owned and step.to not in outside:
                shape = self._shape(step, images)
                # What is carried is added to in place, unless the convolution itself still reads it.
                carried = step.carried if isinstance(step, Conv) and step.carried != step.x else None
                if carried in room and self.last_use[carried] == i:
                    room[step.to] = room.pop(carried)
                else:
                    room[step.to] = _taken(free, shape.numel())
                values[step.to] = room[step.to][: shape.numel()].view(shape)
            dead = [at for at in {*step.reads(), step.to} if at in room and self.last_use[at] <= i]
            free += [room.pop(at) for at in dead]
        return values

    def _room(self, images: int) -> Room:
        values = self._memory(images)
        return Room(values, [step.bind(values, images) for step in self.steps])

    @staticmethod
    def _shape(step: Step, images: int) -> torch.Size:
        _, channels, rows, columns = step.shape
        shape = images, channels, rows, columns
        return torch.Size(block_shape(shape) if step.blocked else shape)


def _taken(free: list[Tensor], size: int) -> Tensor:
    """The smallest free memory that is large enough, or new one."""
    fitting = [memory for memory in free if memory.numel() >= size]
    if not fitting:
        return torch.empty(size)
    best = min(fitting, key=lambda memory: memory.numel())
    free[:] = [memory for memory in free if memory is not best]
    return best


class Runner:
    """Stands in for the ``forward`` of a packed model."""

    def __init__(self, model: nn.Module, networks: Mapping[int, Network | None]) -> None:
        self.model, self.networks = model, networks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ``forward`` computes, as a network where one was measured faster for about so many images."""
        if len(args) == 1 and not kwargs and not torch.compiler.is_compiling() and not self.model.training:
            (x,) = args
            network = self._nearest(x.shape[0]) if isinstance(x, Tensor) and x.dim() == 4 else None
            if network is not None and network.fits(x):
                with torch.no_grad():
                    return network(x)
        return type(self.model).forward(self.model, *args, **kwargs)

    def _nearest(self, images: int) -> Network | None:
        nearest = min(self.networks, key=lambda n: max(n, images) / max(1, min(n, images)))
        return self.networks[nearest]
