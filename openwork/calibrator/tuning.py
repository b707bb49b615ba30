"""Weights of blocks that are tuned by gradient descent, and the loop that keeps the best of what it meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openwork.matrices import Matrix
from openwork.quantization.learned import Learned


class Tuned:
    """A block whose weights are computed anew from what is learned; called like the block.

    Args:
        block: the block itself; untouched until :meth:`write`.
        layers: its matrices, by name.
        learned: what gives some of them their weights ``[out, in * prod(kernel)]``, by the same names.
    """

    def __init__(
        self, block: nn.Module, layers: Mapping[str, Matrix], learned: Mapping[str, Learned]
    ) -> None:
        self.block, self.layers, self.learned = block, layers, dict(learned)
        names = {id(p): name for name, p in block.named_parameters()}
        self.names = {key: names[id(layers[key].weight.parameter)] for key in learned}
        self.hard = False

    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> what is in its place."""
        found: dict[str, Tensor] = {}
        for key, learned in self.learned.items():
            m = self.layers[key]
            name = self.names[key]
            if name not in found:
                found[name] = m.weight.parameter.detach().clone()
            weight = learned.hardened().dense() if self.hard else learned()
            m.view(found[name]).copy_(weight.reshape(m.shape))
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.block, self.weights(), args, kwargs)

    @contextmanager
    def hardened(self) -> Iterator[None]:
        """Inside this, the block computes with the codes it would end with, and no gradients are recorded."""
        self.hard = True
        try:
            with torch.no_grad():
                yield
        finally:
            self.hard = False

    def write(self) -> None:
        """Give the block its hardened weights."""
        with self.hardened():
            parameters = dict(self.block.named_parameters())
            for name, weight in self.weights().items():
                parameters[name].copy_(weight)


def keep_best(
    learned: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int, float], Tensor],
    measure: Callable[[], float],
    batches: int,
    epochs: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Descend, and end with the best state met, the first included.

    Args:
        learned: modules whose state is kept.
        optimizer: of their parameters.
        loss: ``(batch, progress from 0 to 1) -> loss``.
        measure: what is to be small, over all batches; looked at before the first epoch and after each.
        batches: in an epoch; taken in random order.
        epochs: how many.
        generator: of the order.

    Returns:
        The measure before, and that of the state kept.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = best = measure()
    kept = _states(learned)
    for epoch in range(epochs):
        for step, index in enumerate(torch.randperm(batches, generator=generator).tolist()):
            descend(optimizer, parameters, partial(loss, index, (epoch + step / batches) / epochs))
        if (now := measure()) < best:
            best, kept = now, _states(learned)
    for module, state in zip(learned, kept, strict=True):
        module.load_state_dict(state)
    return before, best


def descend(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Callable[[], Tensor]
) -> None:
    """One step. Only ``parameters`` get gradients: what else the loss depends on (biases, norms) is not touched."""
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    optimizer.step()


def squared_distance(output: Tensor, target: Tensor, tokens: Tensor | None) -> Tensor:
    """Mean square over features, summed over the tokens that count.

    Args:
        output, target: ``[n, length, features]`` or the like.
        tokens: boolean ``[n, length]``; None for all.
    """
    distance = (output - target).square().mean(-1)
    return distance.sum() if tokens is None or tokens.shape != distance.shape else distance[tokens].sum()


def _states(modules: Iterable[nn.Module]) -> list[dict[str, Tensor]]:
    return [{k: v.detach().clone() for k, v in module.state_dict().items()} for module in modules]
