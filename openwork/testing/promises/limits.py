"""The promise about limits: a method without its new part is the method it was built on."""

from __future__ import annotations

from openwork.testing.bits import require_same, snapshot
from openwork.testing.registry import promise
from openwork.testing.trial import Trial, plant_zeros


@promise
def limits_are_simpler_methods(trial: Trial) -> None:
    """With a part switched off, the method gives the bits of the simpler method that it declares itself to
    be then (:meth:`openwork.method.Method.limits`).
    """
    for setting, simpler in trial.method().limits():
        outcomes = []
        for method in (setting, simpler):
            model = trial.network()
            plant_zeros(model, method)
            trial.work(method, model)
            outcomes.append(snapshot(model))
        require_same(outcomes[1], outcomes[0], f"between {setting} and {simpler}")
