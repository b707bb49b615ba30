"""The networks and batches that methods are tried on: small, with odd shapes, drawn from generators of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from openwork.scores import Batch


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small network with odd shapes, a convolution, two norms and buffers: images ``[n, 2, 6, 6]`` to
    ``[n, 3]``.
    """

    def layers() -> list[nn.Module]:
        front = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 12)]
        return [*front, nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3)]

    return _drawn(layers, dtype, seed)


def perceptron(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small network of linear layers that can also be stored: images ``[n, 2, 6, 6]`` to ``[n, 3]``."""
    return _drawn(lambda: [nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 3)], dtype, seed)


def narrow(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A network with matrices of one row and one column: images ``[n, 2, 6, 6]`` to ``[n, 3]``."""
    return _drawn(lambda: [nn.Flatten(), nn.Linear(72, 1), nn.Tanh(), nn.Linear(1, 3)], dtype, seed)


class _Residual(nn.Module):
    """What is carried along, and what a perceptron adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = (
            nn.LayerNorm(12),
            nn.Linear(12, 20),
            nn.ReLU(),
            nn.Linear(20, 12),
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.down(self.act(self.up(self.norm(x))))
        return x + added


def residual(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A network of three residual blocks: images ``[n, 2, 6, 6]`` to ``[n, 3]``. Its first layer is called ``0`` and its last one
    ``4``, as in :func:`network`, so that globs fit both.
    """

    def layers() -> list[nn.Module]:
        front = nn.Conv2d(2, 12, 6)
        return [
            front,
            nn.Flatten(),
            nn.Identity(),
            nn.Sequential(*(_Residual() for _ in range(3))),
            nn.Linear(12, 3),
        ]

    return _drawn(layers, dtype, seed)


def tuned(model: nn.Module, seed: int, size: float = 0.1) -> nn.Module:
    """A copy of a model whose parameters and statistics have moved, as by fine-tuning."""
    other = copy.deepcopy(model)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())):
            tensor += (size * torch.rand(tensor.shape, generator=g)).to(tensor.dtype)
    return other


def batches(steps: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Batch]:
    """Random images and classes for the networks above."""
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 2, 6, 6, generator=g, dtype=torch.float64).to(dtype),
            torch.randint(3, (8,), generator=g),
        )
        for _ in range(steps)
    ]


def _drawn(layers: Callable[[], list[nn.Module]], dtype: torch.dtype, seed: int) -> nn.Sequential:
    """Build a network with all parameters drawn from a generator of its own; the global random state is
    left alone.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*layers())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.dim() > 1 else 0.1))
    return model.to(dtype)
