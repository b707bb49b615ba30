"""Promises about dropped blocks: those that stay are as they were, and what cannot be dropped is refused."""

from __future__ import annotations

import io

import torch

from openwork.calibrate.layer_drop import LayerDrop, drop_blocks_
from openwork.testing.bits import require_same, snapshot
from openwork.testing.networks import batches, residual
from openwork.testing.registry import BrokenPromise, promise, require
from openwork.testing.trial import Trial


@promise(about="blocks")
def blocks_that_stay_keep_every_bit(trial: Trial) -> None:
    """Exactly as many blocks go as were asked for, in float32, float64 and bfloat16; the others keep parameters, zeros and order,
    and all that was dropped are whole blocks.
    """
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, method = residual(dtype), _method(trial)
        with torch.no_grad():
            for p in model.parameters():
                p.view(-1)[::3] = 0
        row = model.get_submodule("3")
        blocks = dict(row.named_children())
        before, of = snapshot(model), sum(p.numel() for p in model.parameters())
        done = drop_blocks_(model, method, data=batches(2, dtype))
        require(
            len(done.names) == method.drop, f"{len(done.names)} blocks went, asked for were {method.drop}"
        )
        stay = [block for name, block in blocks.items() if f"3.{name}" not in done.names]
        require(list(row.children()) == stay, "what stays is not what was there, in its order")
        gone = sum(
            p.numel() for name, b in blocks.items() if f"3.{name}" in done.names for p in b.parameters()
        )
        require(
            of - sum(p.numel() for p in model.parameters()) == gone, "more or less than whole blocks went"
        )
        kept = [name for name in blocks if f"3.{name}" not in done.names]
        for place, name in enumerate(kept):
            old = {key: t for key, t in before.items() if key.startswith(f"3.{name}.")}
            new = {f"3.{name}.{key}": t for key, t in model.get_submodule(f"3.{place}").state_dict().items()}
            require_same(old, new, f"in block {name}")


@promise(about="blocks")
def blocks_that_cannot_go_change_nothing(trial: Trial) -> None:
    """More blocks than there are, or data on which the model fails, is a ValueError or the model's own error, and all blocks are
    still there.
    """
    for what, drop, data in (
        ("more blocks than there are", 9, batches(2)),
        ("data of another shape", 1, [(x[:, :1], y) for x, y in batches(2)]),
        ("no data", 1, []),
    ):
        model = residual()
        before, modes = snapshot(model), [m.training for m in model.modules()]
        try:
            drop_blocks_(model, _method(trial, drop=drop), data=data)
        except (ValueError, RuntimeError):
            require_same(before, snapshot(model), f"after {what}")
            require(modes == [m.training for m in model.modules()], f"modes have changed after {what}")
        else:
            raise BrokenPromise(f"{what} was accepted")


@promise(about="blocks")
def a_shallower_model_is_saved_and_loaded(trial: Trial) -> None:
    """The state of what is left loads into a model with as many blocks, which then computes the same."""
    model, other = residual(), residual(seed=4)
    for one in (model, other):
        drop_blocks_(one, _method(trial), data=batches(2))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = batches(1)[0][0]
    with torch.no_grad():
        require(torch.equal(model(x), other(x)), "the loaded model computes something else")


def _method(trial: Trial, **changes: object) -> LayerDrop:
    method = trial.method(**changes)
    assert isinstance(method, LayerDrop)
    return method
