"""The low-rank updates of all weights of a model: put on, trained, merged or taken off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from openwork import patterns
from openwork.finetune.lora import Adapter, LoRA
from openwork.weights import prunable, unwrapped


class Adapters:
    """The adapters of a model. Train :meth:`parameters` with any optimizer, then :meth:`merge_` or :meth:`remove_`."""

    def __init__(
        self, lora: LoRA, model: nn.Module, of: Mapping[str, Adapter], frozen: list[nn.Parameter]
    ) -> None:
        self.lora, self._model, self._of, self._frozen = lora, model, dict(of), frozen
        for adapter in of.values():
            adapter.attach()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are adapted."""
        return tuple(self._of)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        for adapter in self._of.values():
            yield from adapter.own()

    @property
    def trainable(self) -> int:
        """How many numbers are trained: ``rank * (in + out)`` for each weight, and ``out`` more with DoRA."""
        return sum(p.numel() for p in self.parameters())

    @property
    def fraction(self) -> float:
        """The same as a fraction of the model's own parameters."""
        adapters = {id(p) for p in self.parameters()}
        return self.trainable / sum(p.numel() for p in self._model.parameters() if id(p) not in adapters)

    @torch.no_grad()
    def merge_(self) -> dict[str, Tensor]:
        """Write the updates into the weights and take the adapters off.

        Returns:
            Parameter name -> boolean mask ``[out, in, *kernel]`` of what is kept now.

        Raises:
            ValueError: a plain ``lora`` would fill zeros, or an update is not finite. Nothing has changed then.
        """
        merged = {}
        for name, adapter in self._of.items():
            merged[name] = adapter.merged()
            if not bool(merged[name][0].isfinite().all()):
                raise ValueError(f"the update of {name} holds NaN or infinity: nothing was merged")
        self.remove_()
        for name, (weight, _) in merged.items():
            self._of[name].parameter.copy_(weight)
        return {name: mask for name, (_, mask) in merged.items()}

    def remove_(self) -> None:
        """Take the adapters off; the weights are what they were before :func:`adapt_`."""
        for adapter in reversed(self._of.values()):
            adapter.detach()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen.clear()


def adapt_(
    model: nn.Module,
    lora: LoRA | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    include: Sequence[str] = ("*",),
    pattern: str | patterns.Pattern = "unstructured",
) -> Adapters:
    """Put an adapter on every weight matrix that may be pruned, in place, and freeze everything else.

    Until they are merged, the adapted layers are parametrized (:mod:`torch.nn.utils.parametrize`): the model computes with the
    adapted weights, and its own ones do not change. Layers that hold only their kept connections get updates of only those.

    Args:
        model: any module; its layers may be sparse.
        lora: which update; a masked one by default.
        masks: parameter name -> boolean mask ``[out, in, *kernel]``; by default what is not zero. Needed where a kept weight may
            be zero.
        include: globs of parameters to adapt.
        pattern: of the new mask, for ``project``.

    Raises:
        ValueError: no weight matches, or a kind that needs a dense weight for a layer that has none.
    """
    lora = lora or LoRA()
    model = unwrapped(model)
    found = [
        w for w in prunable(model) if not w.reason and any(fnmatchcase(w.name, glob) for glob in include)
    ]
    if not found:
        raise ValueError(
            f"no weight that could be sparse matches {', '.join(include)}: there is nothing to adapt"
        )
    if lora.kind not in ("mask_lora", "scale_lora") and (stored := [w.name for w in found if w.stored]):
        raise ValueError(
            f"{', '.join(stored)} hold only their kept connections, and {lora.kind} updates all: use mask_lora or scale_lora, or "
            "to_dense_ first"
        )
    of = {}
    for i, weight in enumerate(found):
        mask = None if masks is None else masks.get(weight.name)
        generator = torch.Generator().manual_seed(lora.seed * 1_000_003 + i)
        of[weight.name] = Adapter(lora, weight, mask, patterns.pattern(pattern), generator)
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    return Adapters(lora, model, of, frozen)
