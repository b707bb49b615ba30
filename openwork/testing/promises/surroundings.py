"""Promises about what surrounds the chosen weights: random state, types and devices, everything outside the plan."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from openwork.calibrator import BlockCalibrated, Calibrated, ModelCalibrated
from openwork.method import Method
from openwork.plan import plan
from openwork.sparsifier import Training, attach
from openwork.testing.bits import require_same, snapshot
from openwork.testing.exactness import require_exact
from openwork.testing.networks import network
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial, plant_zeros


@promise
def seed_decides(trial: Trial) -> None:
    """The same seed gives the same bits, whatever the global random state, which is left alone."""
    outcomes = []
    for draws in (1, 5):
        model, method = trial.network(), trial.method()
        plant_zeros(model, method)
        with torch.random.fork_rng(devices=[]):
            torch.rand(draws)
            before = torch.get_rng_state()
            trial.work(method, model)
            require(torch.equal(before, torch.get_rng_state()), "the global random state was used")
        outcomes.append(snapshot(model))
    require_same(outcomes[0], outcomes[1], "in a second run with the same seed")


@promise(about="connections")
def dtype_and_device_are_kept(trial: Trial) -> None:
    """Parameters keep their dtype and device, in float32, float64 and bfloat16."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, method = network(dtype), trial.method()
        plant_zeros(model, method)
        described = {name: (t.dtype, t.device) for name, t in model.state_dict().items()}
        masks = require_exact(trial, method, model, f"in {dtype}").masks
        for name, t in model.state_dict().items():
            require(
                (t.dtype, t.device) == described.get(name, (dtype, t.device)),
                f"{name} was {described.get(name, dtype)}, is {(t.dtype, t.device)}",
            )
        for name, mask in masks.items():
            require(mask.dtype == torch.bool, f"the mask of {name} is {mask.dtype}")


@promise(about="connections")
def what_is_excluded_is_untouched(trial: Trial) -> None:
    """Parameters outside the plan keep every bit, except for what the optimizer does to them; modes,
    gradients and ``requires_grad`` stay as they were.
    """
    method = trial.method(exclude=(*trial.options.get("exclude", ()), "4.*"))
    model = network()
    plant_zeros(model, method)
    planned = plan(model, method)
    row = next(row for row in planned if row.name == "4.weight")
    require(not row.sparse, f"4.weight was excluded by name, and the plan says {row.why!r}")
    thinned = {row.name for row in planned.sparse}
    before = snapshot(model)
    flags = _flags(model)
    if isinstance(method, Training):
        attach(model, SGD(model.parameters(), lr=0.1), method).detach()
    else:
        trial.work(method, model)
        require(all(p.grad is None for p in model.parameters()), "gradients were left behind")
    may_change = thinned | _repaired(method, model, thinned)
    require_same(
        before, snapshot(model), "of the parameters and buffers that are not thinned", but=may_change
    )
    now = _flags(model)  # of what a method has added nothing is said
    require(
        all(now[name] == flag for name, flag in flags.items()), "training modes or requires_grad have changed"
    )
    if isinstance(method, Training):
        model = network()
        plant_zeros(model, method)
        trial.work(method, model)  # the optimizer itself moves none of them, see `attached`
        buffers = {name for name, _ in model.named_buffers()}
        require_same(before, snapshot(model), "of the parameters that are not thinned", but=thinned | buffers)


def _flags(model: nn.Module) -> dict[tuple[str, str], bool]:
    """The mode of every module, and whether each parameter has gradients."""
    modes = {("module", name): module.training for name, module in model.named_modules()}
    return modes | {("parameter", name): p.requires_grad for name, p in model.named_parameters()}


def _repaired(method: Method, model: nn.Module, thinned: set[str]) -> set[str]:
    """What a calibrated method may change beside the weights it thins: their biases; all parameters but what is excluded, where
    it works on whole blocks; and buffers, such as what norms remember, where it works on the whole model.
    """
    if isinstance(method, (BlockCalibrated, ModelCalibrated)):
        buffers = model.named_buffers() if isinstance(method, ModelCalibrated) else ()
        return {name for name, _ in (*model.named_parameters(), *buffers)} - {"4.weight"}
    return (
        {f"{name.removesuffix('weight')}bias" for name in thinned}
        if isinstance(method, Calibrated)
        else set()
    )
