"""SSVI: a Bayesian network that is sparse from the first step; RigL over means and deviations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from openwork.allocation import Allocation
from openwork.connections import Connections, Rewiring
from openwork.grid import top_k
from openwork.method import Method, method
from openwork.plan import Plan
from openwork.schedules import value_at
from openwork.sparsifier import Sparsifier
from openwork.train.deep_r import learning_rate
from openwork.train.rigl import RigL

F = nn.functional
Criterion = Literal["mean", "signal", "mean_abs", "signal_abs"]


@method(
    paper="Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, ICLR 2024, arXiv 2402.11025",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class SSVI(RigL):
    """Sparse subspace variational inference: active weights are ``N(mu, sigma^2)``, the others are exactly zero.

    The parameter holds ``mu``; ``sigma = softplus(rho)`` is kept beside. While the model is in training mode, a layer's outputs
    are drawn by local reparametrisation, and to the gradient of the loss comes that of the divergence from the prior::

        y     = x mu^T + sqrt(x^2 (sigma^2)^T) * noise                                     noise ~ N(0, 1)
        loss += w / |D| * KL(q || N(0, prior^2)),   rising over the first half of the run
        drop  the smallest score of (mu, sigma)          grow  the largest |dL/dmu|, L without the divergence

    New connections start with ``mu = 0`` and the mean ``rho`` of the layer. In evaluation mode the model computes with the means;
    :meth:`predict` averages over samples. Linear layers and convolutions, masked.

    Args:
        score: what is dropped first. With ``E|w| = mu erf(mu / (sigma sqrt 2)) + sigma sqrt(2/pi) exp(-mu^2 / 2 sigma^2)``:
            ``mean`` is ``|mu|``; ``signal`` ``|mu| / sigma``; ``mean_abs`` ``E|w|``; ``signal_abs``, the paper's best, ``E|w|``
            over the deviation of ``|w|``.
        deviation: of the weights at first; 0.001. At 0 there is no noise, and no deviation is ever learned.
        prior: deviation of the prior; 0.005, as in the authors' code.
        divergence: ``w``, 0.01 as in the authors' code; 0 leaves it out.
        samples: ``|D|``, examples in the training set.
        allocation: ``uniform``, as in the paper, whose first layer is dense: ``exclude`` it.
        replace: updates come after the optimizer's step.

    Differences from the authors' code: the optimizer trains ``mu``; ``rho`` follows plain gradient descent with its learning
    rate. Deviations are not let fall below a millionth, where the signal would explode.
    """

    stores: ClassVar[bool] = False

    score: Criterion = "signal_abs"
    deviation: float = 1e-3
    prior: float = 5e-3
    divergence: float = 0.01
    samples: int = 50_000
    allocation: str | Allocation = "uniform"
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in ("mean", "signal", "mean_abs", "signal_abs"):
            raise ValueError(f"unknown score {self.score!r}: choose mean, signal, mean_abs or signal_abs")
        if self.deviation < 0 or self.prior <= 0 or self.divergence < 0 or self.samples < 1:
            raise ValueError(
                "deviation and divergence are at least 0, prior is positive and there is at least one sample; got "
                f"{self.deviation}, {self.divergence}, {self.prior} and {self.samples}"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield from super(
            SSVI, dataclasses.replace(self, deviation=0.0, divergence=0.0, score="mean")
        ).limits()
        silent = dataclasses.replace(self, deviation=0.0, divergence=0.0, score="mean")
        yield silent, silent.reduced_to(RigL)

    def start(self, layout: Plan) -> Plan:
        for row in layout.sparse:
            if type(row.weight.module) not in _VARIANCES or row.weight.stored:
                raise ValueError(
                    f"SSVI adds noise to the outputs of masked linear layers and convolutions, and {row.name} belongs to "
                    f"{row.weight.module}: exclude it, or use to_dense_ first"
                )
        return layout

    def attached(self, sparsifier: Sparsifier) -> None:
        if self.deviation == 0.0:
            return
        for name, c in sparsifier.connections.items():
            start = torch.full_like(c.weight.parameter.detach(), math.log(math.expm1(self.deviation)))
            sparsifier.state[f"rho {name}"] = start
            sparsifier.state[f"pull {name}"] = torch.zeros_like(start)
            sparsifier.handles.append(c.weight.module.register_forward_hook(_Noise(sparsifier, name)))

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        if self.deviation == 0.0:
            return
        weight = self.divergence / self.samples * min(1.0, 2.0 * step / self.run_length)
        for name, c in sparsifier.connections.items():
            mu, rho = c.weight.parameter, sparsifier.state[f"rho {name}"]
            sigma = F.softplus(rho)
            if mu.grad is not None:
                mu.grad.add_(torch.where(c.mask, weight / self.prior**2 * mu, 0))
            pull = sparsifier.state[f"pull {name}"].nan_to_num(0, 0, 0)
            pull = pull + weight * (sigma / self.prior**2 - 1.0 / sigma) * rho.sigmoid()
            moved = rho - learning_rate(c) * torch.where(c.mask, pull, 0)
            sparsifier.state[f"rho {name}"] = moved.clamp(min=math.log(math.expm1(1e-6)))
            sparsifier.state[f"pull {name}"] = torch.zeros_like(rho)

    def choose(self, sparsifier: Sparsifier, step: int) -> Iterator[tuple[Connections, Rewiring]]:
        fraction = value_at(self.drop, step, self.run_length)
        for name, c in sparsifier.connections.items():
            if self.deviation == 0.0:
                alive = self.survivors(c, fraction)
            else:
                sigma = F.softplus(sparsifier.state[f"rho {name}"]).flatten()[c.positions]
                active = c.kept // c.grid.atom
                alive = top_k(
                    c.pool(certainty(c.values, sigma, self.score)), active - int(fraction * active + 1e-9)
                )
            yield c, c.rewired(alive, self.growth_in(c, sparsifier, step), sparsifier.generator)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        for c, rewiring in list(self.choose(sparsifier, step)):
            rho = sparsifier.state.get(f"rho {c.name}")
            mean = None if rho is None else rho.flatten()[c.positions].mean()
            fresh = c.adopt(rewiring).fresh
            if rho is not None and mean is not None and fresh.numel():
                moved = rho.flatten().clone()
                moved[fresh] = mean
                sparsifier.state[f"rho {c.name}"] = moved.view_as(rho)

    def predict(
        self, sparsifier: Sparsifier, model: Callable[[Tensor], Tensor], inputs: Tensor, samples: int = 5
    ) -> Tensor:
        """Class probabilities ``[n, classes]``, averaged over ``samples`` networks drawn from the posterior (5, as in the paper).

        Args:
            sparsifier: that trains the model.
            model: in evaluation mode; not changed.
            inputs: what it takes.
            samples: how many networks to draw.
        """
        sparsifier.state["sampling"] = torch.tensor(True)
        try:
            with torch.no_grad():
                return torch.stack([model(inputs).softmax(-1) for _ in range(samples)]).mean(0)
        finally:
            del sparsifier.state["sampling"]


def certainty(mu: Tensor, sigma: Tensor, score: Criterion) -> Tensor:
    """How surely each weight ``N(mu, sigma^2)`` is needed, higher = keep; see :class:`SSVI`."""
    if score == "mean":
        return mu.abs()
    if score == "signal":
        return mu.abs() / sigma
    scaled = mu / sigma
    size = (
        mu * torch.erf(scaled / math.sqrt(2.0))
        + sigma * math.sqrt(2.0 / math.pi) * (-scaled.square() / 2).exp()
    )
    if score == "mean_abs":
        return size
    spread = (sigma.square() + mu.square() - size.square()).clamp(min=torch.finfo(mu.dtype).tiny)
    return size / spread.sqrt()


class _Noise:
    """Draws the outputs of one layer, and remembers how the loss would have them vary."""

    def __init__(self, sparsifier: Sparsifier, name: str) -> None:
        self.sparsifier, self.name = sparsifier, name

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        state, c = self.sparsifier.state, self.sparsifier.connections[self.name]
        if not (layer.training or "sampling" in state):
            return y
        rho = state[f"rho {self.name}"].detach()
        if torch.is_grad_enabled():
            rho = rho.requires_grad_()
            rho.register_hook(self._remember)
        variance = torch.where(c.mask, F.softplus(rho), 0).square().to(y.dtype)
        spread = (_VARIANCES[type(layer)](layer, inputs[0].square(), variance) + 1e-8).sqrt()
        drawn = torch.randn(y.shape, generator=self.sparsifier.generator, dtype=torch.float32)
        return y + spread * drawn.to(y)

    def _remember(self, gradient: Tensor) -> None:
        state = self.sparsifier.state
        state[f"pull {self.name}"] = state[f"pull {self.name}"] + gradient.detach()


def _of_convolution(layer: nn.Module, x: Tensor, variance: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x, variance, None, layer.stride, layer.padding, layer.dilation, layer.groups)


_VARIANCES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    nn.Linear: lambda layer, x, variance: x @ variance.T,
    nn.Conv2d: _of_convolution,
}
"""The variance of a layer's outputs from squared inputs and the variance of its weights."""
