"""The same parameters in every model, or a refusal that names the first that is not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from openwork.layouts.layer import SparseLayer

State = Mapping[str, Tensor]


def state_of(model: nn.Module | State) -> State:
    """Name -> tensor, without copies.

    Raises:
        ValueError: a layer holds only its kept connections.
    """
    if not isinstance(model, nn.Module):
        return model
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            raise ValueError(
                f"{name} holds only its kept connections, and deltas are taken between dense tensors: use to_dense_ first"
            )
    return model.state_dict()


def matched(model: nn.Module, tuned: State, who: str) -> dict[str, Tensor]:
    """The tuned tensor of every parameter of ``model``, by the parameter's own name; tied ones may go by any of their names.

    Args:
        model: the base.
        tuned: the state of a model that was fine-tuned from it.
        who: what it is called in errors.

    Raises:
        ValueError: a parameter is missing, has another shape or is no plain floating point, is NaN or infinite somewhere, or
            ``tuned`` has a tensor that the base has not.
    """
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    known = {name for aliases in names.values() for name in aliases}
    known |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    if extra := [name for name in tuned if name not in known]:
        raise ValueError(
            f"{who} has {extra[0]}, and the base has not{_more(extra)}: load the base with the class of the tuned model (a head "
            "that is new there then needs the tuned weights), or leave the tensor out"
        )
    found = {}
    for name, p in model.named_parameters():
        tensor = next((tuned[alias] for alias in names[id(p)] if alias in tuned), None)
        if tensor is None:
            raise ValueError(f"the base has {name}, and {who} has not: they are not of the same kind")
        if tensor.shape != p.shape:
            hint = ": resize the embedding of the base first, if tokens were added" if p.dim() == 2 else ""
            raise ValueError(f"{name} is {list(p.shape)} in the base and {list(tensor.shape)} in {who}{hint}")
        if not (tensor.is_floating_point() and p.is_floating_point()) or tensor.dtype.itemsize < 2:
            raise ValueError(
                f"{name} is {p.dtype} in the base and {tensor.dtype} in {who}: deltas are of floating point; load both without "
                "quantisation"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity in {who}")
        found[name] = tensor.to(p.device)
    return found


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


@torch.no_grad()
def merge_buffers(model: nn.Module, states: list[State]) -> None:
    """Let buffers of floating point, such as statistics of batch norms, be the mean of those of the tuned models."""
    for name, buffer in model.named_buffers():
        held = [state[name] for state in states if name in state and state[name].shape == buffer.shape]
        if buffer.is_floating_point() and len(held) == len(states):
            buffer.copy_(torch.stack([h.double().to(buffer.device) for h in held]).mean(0))
