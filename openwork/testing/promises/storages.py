"""The promise about storage: what is kept may be held under a mask or alone."""

from __future__ import annotations

from torch.optim import SGD

from openwork.sparsifier import Training, attach
from openwork.storage import to_sparse_
from openwork.testing.networks import batches, perceptron
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial, plant_zeros, step


@promise(about="connections")
def both_storages_agree(trial: Trial) -> None:
    """Training the kept connections alone gives the losses of training under a mask, step by step; a method
    that cannot do so says so in a ValueError.
    """
    method = trial.method()
    if not isinstance(method, Training):
        return
    data = batches(trial.steps)
    losses = []
    for stored in (False, True):
        model = perceptron()
        plant_zeros(model, method)
        try:
            if stored:
                to_sparse_(model, method)
            optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
            sparsifier = attach(model, optimizer, method)
        except ValueError:
            return
        losses.append([step(model, optimizer, batch) for batch in data])
        sparsifier.detach()
    for number, (masked, held) in enumerate(zip(*losses, strict=True), 1):
        require(
            abs(masked - held) <= 1e-9 * abs(masked), f"step {number}: loss {masked} masked, {held} stored"
        )
