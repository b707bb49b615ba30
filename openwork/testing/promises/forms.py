"""Promises about layers in another form: which they are, how many numbers they hold, and that they train, save and load."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from openwork.layouts.structured import StructuredLinear
from openwork.method import Method
from openwork.restructuring import Restructuring, restructure_
from openwork.storage import to_dense_
from openwork.testing.bits import require_same, snapshot
from openwork.testing.networks import batches, network
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial


@promise(about="forms")
def numbers_are_counted_exactly(trial: Trial) -> None:
    """What the table says that layers are made of is what the model has more, or fewer, than before."""
    method = trial.method()
    if not isinstance(method, Restructuring):
        return
    model = network()
    before, names = _numbers(model), {name for name, _ in model.named_parameters()}
    done = restructure_(model, method)
    gone = names - {name for name, _ in model.named_parameters()}
    replaced = {row.name for row in done.rows if row.why == method.name}
    require(replaced <= gone, f"{', '.join(sorted(replaced - gone))} still hold the weights they had")
    moved = _numbers(model) - before
    require(
        done.after - done.before == moved,
        f"the table tells of {done.after - done.before} numbers more, and the model has {moved} more",
    )


@promise(about="forms")
def what_stays_is_untouched(trial: Trial) -> None:
    """Layers that were excluded, and all that the form is not for, are the same objects with the same bits; the layers that were
    replaced are in the mode of those before them.
    """
    for excluded in ("4.weight", "7.weight"):
        model = network()
        model[4].eval()
        modules, before = dict(model.named_children()), snapshot(model)
        method = trial.method(exclude=(*trial.method().exclude, excluded))
        try:
            trial.work(method, model)
        except ValueError:
            require_same(before, snapshot(model), f"though {excluded} and the rest were refused")
        now = dict(model.named_children())
        changed = {name for name, module in now.items() if module is not modules[name]}
        require(excluded.split(".")[0] not in changed, f"{excluded} was excluded by name, and replaced")
        strange = {name for name in changed if not isinstance(modules[name], _takes(method))}
        require(not strange, f"{', '.join(sorted(strange))} were replaced, which it has no form for")
        rest = {name for name in before if name.split(".")[0] in changed}
        require_same(before, snapshot(model) | {name: before[name] for name in rest}, "beside the new layers")
        wrong = [name for name, module in now.items() if module.training != modules[name].training]
        require(not wrong, f"{', '.join(wrong)} came in another mode")


@promise(about="forms")
def form_keeps_dtype_and_device(trial: Trial) -> None:
    """All that is trained has the dtype and device of the layer it replaces, in float32, float64 and bfloat16."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = network(dtype)
        trial.work(trial.method(), model)
        for name, p in model.named_parameters():
            require((p.dtype, p.device) == (dtype, torch.device("cpu")), f"{name} is {p.dtype} on {p.device}")
        y = model(batches(1, dtype)[0][0])
        require(y.dtype == dtype, f"outputs of a model in {dtype} are {y.dtype}")


@promise(about="forms")
def every_number_is_trained(trial: Trial) -> None:
    """After one pass backward every parameter that wants a gradient has one, finite."""
    model = network()
    trial.work(trial.method(), model)
    x, y = batches(1)[0]
    nn.functional.cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        reached = p.grad is not None and bool(p.grad.isfinite().all())
        require(reached or not p.requires_grad, f"no finite gradient reaches {name}")


@promise(about="forms")
def saved_state_is_all_there_is(trial: Trial) -> None:
    """A model of larger weights that was given the same form and loads the saved state computes the same bits: nothing that
    matters is held elsewhere.
    """
    model, other = network(), network()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)  # the ranks and the signs of other weights might be others
    for each in (model, other):
        trial.work(trial.method(), each)
    other.load_state_dict(model.state_dict())
    require_same(snapshot(model), snapshot(other), "after loading")
    x, _ = batches(1)[0]
    require_same(
        {"the outputs": model.eval()(x)}, {"the outputs": other.eval()(x)}, "from those of the saved model"
    )


@promise(about="forms")
def multiplied_out_it_is_the_same(trial: Trial) -> None:
    """Layers that have a dense weight compute with it: :func:`openwork.to_dense_` gives ordinary layers of the same outputs."""
    model = network()
    trial.work(trial.method(), model)
    x, _ = batches(1)[0]
    y = model.eval()(x)
    g = torch.Generator().manual_seed(0)
    for layer in (m for m in model.modules() if isinstance(m, StructuredLinear)):
        h = torch.randn(2, 3, layer.in_features, generator=g, dtype=x.dtype)
        apart = float((layer.product(h) - h @ layer.dense().T).detach().abs().max())
        require(apart < 1e-9, f"a layer's product differs by {apart} from that with its dense weight")
    to_dense_(model)
    apart = float((model(x) - y).detach().abs().max())
    require(apart < 1e-9, f"outputs differ by {apart} once layers are multiplied out")


@promise(about="forms")
def bad_weights_are_refused(trial: Trial) -> None:
    """A weight of NaN or infinity is refused by name in a ValueError, and no layer has changed then."""
    for value in (torch.nan, torch.inf):
        model = network()
        with torch.no_grad():
            model.get_parameter("7.weight")[1, 2] = value
        modules, before = list(model.children()), snapshot(model)
        try:
            trial.work(trial.method(), model)
        except ValueError as error:
            require("7.weight" in str(error), f"the error does not name 7.weight: {error}")
        else:
            require(False, f"a weight of {value} was accepted")
        same = all(a is b for a, b in zip(modules, model.children(), strict=True))
        require(same, f"layers were replaced though a weight of {value} was refused")
        require_same(before, snapshot(model), f"after a weight of {value} was refused")


def _numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _takes(method: Method) -> tuple[type[Any], ...]:
    return method.takes if isinstance(method, Restructuring) else (nn.Linear,)
