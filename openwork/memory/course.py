"""What is in memory at each moment of a training step, found out by taking one of two and one of three examples.

Forward adds what is kept for backward; backward lets go of it and makes gradients. Which moment is the dearest depends on the
model and the batch. Both steps run the same operators, so the difference of what they hold after each is what one example takes
at that moment. Nothing is trained: gradients of parameters are noted and thrown away as they come.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Course:
    """A step, moment by moment.

    Attributes:
        held: bytes that one example takes after each operator.
        reordered: bytes of one example that a dense convolution takes for a moment, besides.
        read: bytes of an example.
        saved: bytes that there are of one example between forward and backward, besides itself.
        gradients: for each parameter, by its identity, the moment from which its gradient exists.
        differentiated: identities of the modules whose inputs have gradients.
        passed: for each observed module, by its identity, bytes of what it reads and makes of one example.
    """

    held: list[int]
    reordered: list[int]
    read: int
    saved: int
    gradients: Mapping[int, int]
    differentiated: frozenset[int]
    passed: Mapping[int, int]

    def peak(self, batch: int, gradients: Mapping[int, int], *, dense: bool) -> int:
        """The most bytes of activations and gradients at one moment.

        Args:
            batch: examples a step.
            gradients: how many bytes each parameter's gradient has.
            dense: whether convolutions are dense ones, which put what they read and make in an order of their own first.
        """
        coming = sorted((moment, gradients[one]) for one, moment in self.gradients.items())
        most = there = 0
        for moment, (held, reordered) in enumerate(zip(self.held, self.reordered, strict=True)):
            while coming and coming[0][0] <= moment:
                there += coming.pop(0)[1]
            most = max(most, batch * (held + dense * reordered) + there)
        return most

    def left(self, batch: int) -> int:
        """Bytes that are still held when backward is done: what is observed."""
        return batch * self.held[-1] if self.held else 0


def course(model: nn.Module, example: Tensor, observed: Collection[nn.Module] = ()) -> Course:
    """The course of a step of ``model``, which is not changed.

    Args:
        model: on any device, the meta device too.
        example: an input ``[1, ...]``.
        observed: modules whose inputs, and the gradients of whose outputs, are kept until the end.
    """
    # The first time, layers that hold only their kept connections derive things from their indices.
    _, two, three = (_Step(model, example, copies, observed) for copies in (2, 2, 3))
    gradients = two.gradients
    if len(two.held) == len(three.held):
        held, reordered = _differences(two.held, three.held), _differences(two.reordered, three.reordered)
    else:  # other operators for another batch: only the extremes can be compared
        held, reordered = [max(three.held) - max(two.held), three.held[-1] - two.held[-1]], [0, 0]
        gradients = dict.fromkeys(gradients, 0)
    passed = {one: more - two.passed[one] for one, more in three.passed.items()}
    saved = three.saved - two.saved
    return Course(
        held, reordered, example[:1].nbytes, saved, gradients, frozenset(two.differentiated), passed
    )


def _differences(few: list[int], more: list[int]) -> list[int]:
    return [b - a for a, b in zip(few, more, strict=True)]


class _Step:
    """One step on some copies of an example."""

    def __init__(
        self, model: nn.Module, example: Tensor, copies: int, observed: Collection[nn.Module]
    ) -> None:
        self.observed = observed
        self.gradients: dict[int, int] = {}
        self.differentiated: set[int] = set()
        self.passed: dict[int, int] = {}
        self.saved = 0
        self._kept: list[Any] = []
        x = example[:1].expand(copies, *example.shape[1:]).contiguous()
        counted = (one for one in model.named_buffers() if one[1].is_floating_point() or one[1].dim() == 0)
        own = {name: buffer.detach().clone() for name, buffer in counted}
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), _hooked(model, self._look):
            weights = {name: self._noted(p) for name, p in model.named_parameters()}
            known = [x, *own.values(), *model.parameters(), *model.buffers()]
            with _Watch(known) as self._watch:
                outputs = functional_call(model, {**own, **weights}, (x,))
                ends = [t for t in _tensors(outputs) if t.requires_grad]
                self.saved = self._watch.live
                if ends:
                    torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])
                del outputs, ends
            self.held, self.reordered = [*self._watch.held, self._watch.live], [*self._watch.reordered, 0]

    def _noted(self, parameter: nn.Parameter) -> Tensor:
        """An alias of a parameter whose gradient is told about and thrown away."""
        alias, which = parameter.detach().requires_grad_(parameter.requires_grad), id(parameter)

        def note(alias: Tensor) -> None:
            self.gradients[which], alias.grad = len(self._watch.held), None

        if parameter.requires_grad:
            alias.register_post_accumulate_grad_hook(note)
        return alias

    def _look(self, module: nn.Module, arguments: tuple[object, ...], output: object) -> None:
        read = arguments[0] if arguments else None
        if not (isinstance(read, Tensor) and isinstance(output, Tensor)):
            return
        if read.requires_grad:
            self.differentiated.add(id(module))
        if module in self.observed and output.requires_grad:
            self.passed[id(module)] = read.nbytes + output.nbytes
            self._kept.append(read.detach())
            output.register_hook(lambda gradient: self._kept.append(gradient.detach()))


class _Watch(TorchDispatchMode):
    """Adds up the bytes of all tensors that operators make and that are still there."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.held, self.reordered = 0, [0], [0]
        self._seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.held.append(self.live)
        self.reordered.append(_reordered(function, arguments, made))
        return made

    def _gone(self, which: int, nbytes: int) -> None:
        self._seen.discard(which)
        self.live -= nbytes


def _reordered(function: Any, arguments: Any, made: Any) -> int:
    """Bytes of the images that a dense convolution reads and makes."""
    if function is torch.ops.aten.convolution.default:
        images = [arguments[0], made]
    elif function is torch.ops.aten.convolution_backward.default:
        images = [*arguments[:2], made[0]]
    else:
        return 0
    return sum(t.nbytes for t in images if isinstance(t, Tensor))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def _hooked(model: nn.Module, hook: Any) -> Iterator[None]:
    hooks = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
