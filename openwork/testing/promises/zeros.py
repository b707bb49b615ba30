"""The promise about training: what is pruned stays exactly zero, step by step, in the optimizer as well."""

from __future__ import annotations

from torch import Tensor

from openwork.sparsifier import Training
from openwork.testing.networks import batches, network
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial, attached, plant_zeros, step


@promise(about="connections")
def zeros_stay_zero(trial: Trial) -> None:
    """While training, pruned weights and every optimizer state of theirs (unless the method says that they
    are latent) are exactly zero after each step, and the number of connections stays what it is, or falls if
    the method says that it shrinks, or is that of the dense model if the method says that it restores.
    """
    method = trial.method()
    if not isinstance(method, Training):
        return
    model = network()
    plant_zeros(model, method)
    sparsifier, optimizer = attached(method, model)
    kept = sparsifier.kept
    for number, batch in enumerate(batches(trial.steps), 1):
        step(model, optimizer, batch)
        require(
            sparsifier.kept == kept
            or (method.shrinks and sparsifier.kept < kept)
            or (method.restores and sparsifier.kept == sum(c.numel for c in sparsifier.connections.values()))
            or (method.whole_units and sparsifier.kept <= sparsifier.plan.kept),
            f"step {number}: {sparsifier.kept} connections, before {kept}",
        )
        kept = sparsifier.kept
        for name, c in sparsifier.connections.items():
            states = {} if method.latent else optimizer.state[c.weight.parameter]
            held = {"the weight": c.weight.parameter, **states}
            for what, tensor in held.items():
                if isinstance(tensor, Tensor) and tensor.shape == c.weight.parameter.shape:
                    left = int((c.weight.oriented(tensor.detach())[~c.mask] != 0).sum())
                    require(
                        left == 0, f"step {number}: {what} of {name} has {left} values that should be zero"
                    )
