"""Which features of a table matter? A sparse denoising autoencoder tells, without labels and in memory of its connections.

found = ow.select_features(x, 50)
x[:, found.indices]
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.progress import phase
from openwork.sparsifier import attach
from openwork.storage import to_sparse_
from openwork.tasks.mlp import mlp
from openwork.train.quickselection import QuickSelection


@dataclass(frozen=True)
class Features:
    """What :func:`select_features` found.

    Attributes:
        indices: int64 ``[count]``, ascending: the features of largest strength, ties to the first.
        strength: ``[features]``, of all of them.
        connections: of the autoencoder, the same from the first step to the last.
        seconds: of the training.
    """

    indices: Tensor
    strength: Tensor
    connections: int
    seconds: float


def select_features(
    inputs: Tensor,
    count: int,
    *,
    hidden: int = 1000,
    epsilon: float = 13.0,
    drop: float = 0.2,
    epochs: int = 10,
    batch_size: int = 100,
    noise: float = 0.2,
    dropout: float = 0.2,
    deviation: float = 0.02,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
    seed: int = 0,
) -> Features:
    """Choose ``count`` features of a table by QuickSelection.

    An autoencoder ``features -> hidden -> features`` (sigmoid, then linear) is trained by :class:`openwork.QuickSelection` to
    restore standardised samples from noisy ones; its topology changes after every epoch. It holds ``epsilon * (in + out)``
    connections a layer, and so do its gradients and its optimizer. The loss is half the squared error, summed over features.

    Args:
        inputs: ``[samples, features]``, finite numbers; not changed. They are standardised here, or features of large variance
            would win.
        count: how many to choose.
        hidden, epsilon, drop, batch_size, noise, dropout, learning_rate, momentum, weight_decay: defaults of the paper, noise as
            the deviation of what is added to standardised samples.
        deviation: of new weights, at the start and later; 0.1 in the authors' code. From smaller ones it shows sooner which
            inputs collect strength.
        epochs: 10, the paper's quick setting. Features that vary together are learned first: stop early. A long training (100
            in the paper) learns to copy noise too, and as every noise feature needs links of its own while others share them, the
            ranking turns over at last.
        seed: of everything random; the global random state is neither used nor changed.

    Returns:
        The features chosen, and the strength of all.

    Raises:
        ValueError: the table is empty or holds NaN or infinity, or ``count`` is not between 1 and the number of features.
    """
    if inputs.dim() != 2 or not inputs.numel() or not bool(inputs.isfinite().all()):
        raise ValueError(
            f"features are chosen from a table [samples, features] of finite numbers; got {list(inputs.shape)}"
            + (", which holds NaN or infinity" if inputs.numel() and inputs.dim() == 2 else "")
        )
    samples, features = inputs.shape
    if not 1 <= count <= features:
        raise ValueError(f"cannot choose {count} of {features} features")
    if epochs < 1:
        raise ValueError(f"strength comes from training; got epochs={epochs}")
    clean = standardised(inputs)
    generator = torch.Generator().manual_seed(seed)
    model = mlp([features, hidden, features], nn.Sigmoid, seed=seed)
    first, act, second = (model.get_submodule(name) for name in ("fc1", "act1", "fc2"))
    for layer in (first, second):
        nn.init.normal_(layer.get_parameter("weight"), std=deviation, generator=generator)
    per_epoch = -(-samples // batch_size)
    links = min(round(epsilon * (features + hidden)), features * hidden)
    method = QuickSelection(kept=2 * links, drop=drop, steps=epochs * per_epoch, every=per_epoch, seed=seed)
    to_sparse_(model, method)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    sparsifier = attach(model, optimizer, method)
    first, second = model.get_submodule("fc1"), model.get_submodule("fc2")

    def like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator)

    begin = time.perf_counter()
    with phase(f"selecting {count} of {features} features", method.run_length) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(samples, generator=generator).split(batch_size):
                x = clean[batch]
                h = act(first(x + noise * like(x)))
                alive = torch.rand(h.shape, generator=generator) >= dropout
                loss = (second(h * alive / (1.0 - dropout)) - x).square().sum() / (2 * len(x))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                bar.advance()
    strength = method.strength(sparsifier, "fc1.weight")
    chosen = strength.argsort(descending=True, stable=True)[:count].sort().values
    return Features(chosen, strength, sparsifier.kept, time.perf_counter() - begin)


def standardised(inputs: Tensor) -> Tensor:
    """Every feature at mean 0 and deviation 1, float32; constant ones at 0."""
    x = inputs.double()
    x = x - x.mean(0)
    deviation = x.square().mean(0).sqrt()
    return torch.where(deviation > 0, x / deviation.clamp(min=torch.finfo(x.dtype).tiny), 0).float()
