"""Which connections matter.

A score has the shape of its parameter, and higher means keep. Scores of single parameters are functions of tensors; scores
of a whole model at initialisation (SNIP, GraSP, SynFlow) run it on a few batches and leave it exactly as it was: weights,
gradients, buffers, modes and the global random state are restored.

``batches`` are pairs ``(inputs, targets)``; inputs may be a tensor, a tuple of arguments or a dict of keyword arguments.
``loss(outputs, targets)`` is a scalar tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Batch = tuple[Any, Any]
Loss = Callable[[Any, Any], Tensor]
Scores = dict[str, Tensor]


def magnitude(weight: Tensor) -> Tensor:
    """``|w|``."""
    return weight.detach().abs()


def saliency(weight: Tensor, gradient: Tensor) -> Tensor:
    """``|w * g|``, the first-order change of the loss when the weight is removed."""
    return (weight.detach() * gradient).abs()


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """``-w * g``: positive where descent moves the weight away from zero (Sanh et al., 2020, arXiv 2005.07683)."""
    return -weight.detach() * gradient


def uniform(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random scores in [0, 1), drawn on the CPU so that a seed means the same on every device."""
    return torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)


def snip(model: nn.Module, parameters: Mapping[str, Tensor], batches: Iterable[Batch], loss: Loss) -> Scores:
    """SNIP: ``|w * dL/dw|`` with the gradient summed over ``batches`` (Lee et al., 2019, arXiv 1810.02340)."""
    with untouched(model):
        weights = list(parameters.values())
        total = [torch.zeros_like(w) for w in weights]
        for inputs, targets in _some(batches, "SNIP"):
            for sum_, g in zip(total, _gradients(loss(run(model, inputs), targets), weights), strict=True):
                sum_ += g
        return {name: saliency(w, g) for (name, w), g in zip(parameters.items(), total, strict=True)}


def grasp(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Batch],
    loss: Loss,
    temperature: float = 200.0,
) -> Scores:
    """GraSP: ``w * (H g)``, what keeps the gradient flowing (Wang et al., 2020, arXiv 2002.07376).

    Logits are divided by ``temperature`` (200, as in the source) before the loss. Removing a weight changes the squared
    gradient norm by ``-w * Hg`` to first order, so connections with the lowest ``w * Hg`` hinder the flow least when removed.
    ``g`` is taken over all batches first, then ``H g`` as the gradient of ``g_fixed . g``.
    """
    # the fused attention kernels have no second derivative
    with untouched(model), sdpa_kernel(SDPBackend.MATH):
        weights = list(parameters.values())
        kept = list(_some(batches, "GraSP"))
        fixed = [torch.zeros_like(w) for w in weights]
        for inputs, targets in kept:
            for sum_, g in zip(
                fixed, _gradients(loss(run(model, inputs) / temperature, targets), weights), strict=True
            ):
                sum_ += g
        curved = [torch.zeros_like(w) for w in weights]
        for inputs, targets in kept:
            flow = torch.autograd.grad(
                loss(run(model, inputs) / temperature, targets),
                weights,
                create_graph=True,
                materialize_grads=True,
            )
            alignment = torch.stack([(a * b).sum() for a, b in zip(fixed, flow, strict=True)]).sum()
            for sum_, h in zip(curved, _gradients(alignment, weights), strict=True):
                sum_ += h
        return {name: w.detach() * h for (name, w), h in zip(parameters.items(), curved, strict=True)}


def synflow(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any) -> Scores:
    """SynFlow: ``|w * dR/dw|`` where ``R`` is the sum of the outputs for an input of ones through the network of absolute
    values (Tanaka et al., 2020, arXiv 2006.05467).

    Needs no data: ``inputs`` only gives shape and type of one sample. Runs in evaluation mode with every parameter and buffer
    replaced by its absolute value, in float64, because products over many layers leave float32.
    """
    with untouched(model):
        model.eval()
        absolute = {
            name: t.detach().abs().double() if t.is_floating_point() else t
            for name, t in [*model.named_parameters(), *model.named_buffers()]
        }
        names = {id(t): name for name, t in model.named_parameters()}
        leaves = {name: absolute[names[id(w)]].requires_grad_() for name, w in parameters.items()}
        args, kwargs = _arguments(_ones(inputs))
        outputs = torch.func.functional_call(model, absolute, args, kwargs)
        gradients = _gradients(_first(outputs).sum(), list(leaves.values()))
        return {name: saliency(leaf, g) for (name, leaf), g in zip(leaves.items(), gradients, strict=True)}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a model inside this and find it afterwards as it was: buffers, gradients, modes, random state."""
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    gradients = [(p, p.grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            for p, _ in wanted:
                if p.is_floating_point():
                    p.requires_grad_(True)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, flag in wanted:
            p.requires_grad_(flag)
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def run(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a batch's inputs: one tensor, a tuple of arguments or a dict of keyword arguments."""
    args, kwargs = _arguments(inputs)
    return model(*args, **kwargs)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _ones(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        if not inputs.is_floating_point():
            return inputs[:1]
        return torch.ones_like(inputs[:1], dtype=torch.float64)
    if isinstance(inputs, Mapping):
        return {key: _ones(value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_ones(value) for value in inputs)
    return inputs


def _first(outputs: Any) -> Tensor:
    """The tensor among a model's outputs: the output itself, ``.logits``, or the first of several."""
    if isinstance(outputs, Tensor):
        return outputs
    if hasattr(outputs, "logits"):
        return _first(outputs.logits)
    return _first(outputs[0] if isinstance(outputs, (tuple, list)) else next(iter(outputs.values())))


def _gradients(scalar: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scalar, weights, materialize_grads=True)


def _some(batches: Iterable[Batch], method: str) -> Iterator[Batch]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError(
            f"{method} scores connections on data, and data= holds no batch: give at least one, as in data=[(inputs, targets)]"
        )
