"""What cannot change while several processes train one model."""

from __future__ import annotations

from torch import nn
from torch.utils.hooks import RemovableHandle

from openwork import processes
from openwork.plan import Plan
from openwork.sparsifier.contract import Training


def fixed_buckets(model: nn.Module, method: Training, layout: Plan) -> list[RemovableHandle]:
    """Refuse to resize parameters whose gradients travel in buckets that are cut once, now or when the model is wrapped later.

    Returns:
        Handles of the hooks that look out for a wrapper.
    """
    stored = [row for row in layout.sparse if row.weight.stored]
    if not stored or not (method.shrinks or method.redistributes or method.whole_units):
        return []

    def refuse(*_: object) -> None:
        raise ValueError(
            f"{method.name} changes how many connections a parameter has, and DistributedDataParallel has cut its buckets for "
            f"gradients of a fixed size; {', '.join(row.name for row in stored)} hold only their kept connections. Train masked "
            "(to_dense_ before wrapping the model) and store when training is done"
        )

    def look_out(*_: object) -> None:
        if getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None) is not None:
            refuse()

    if isinstance(model, nn.parallel.DistributedDataParallel):
        refuse()
    if processes.count() == 1:
        return []
    return [row.weight.module.register_forward_pre_hook(look_out) for row in stored]
