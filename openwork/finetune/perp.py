"""PERP: after pruning, a thousandth of the parameters is enough to learn most of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.calibrator.contract import ModelCalibrated
from openwork.finetune.course import train
from openwork.finetune.lora import LoRA
from openwork.finetune.subsets import check_subsets, training
from openwork.method import method
from openwork.scores import Loss, run
from openwork.weights import prunable


@method(
    paper="Zimmer, Andoni, Spiegel, Pokutta, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs, 2023, "
    "arXiv 2312.15230",
    kind="finetune",
)
@dataclass(frozen=True, kw_only=True)
class PERP(ModelCalibrated):
    """Retrain biases, norms, the head and low-rank updates of the pruned weights on the model's own loss.

    Biases and norms alone are 0.03 to 0.3 % of a large model and recover most of the loss; masked low-rank updates recover the
    rest, and are merged so that no zero is filled. The last stage of a recipe.

    The loss is that of the next token where the data holds no targets, and ``loss(outputs, targets)`` where it does. Padding,
    where ``attention_mask`` is 0, is not counted.

    Args:
        train: any of ``"bias"``, ``"norm"``, ``"head"`` (a plain low-rank update of the output head), and one kind of low-rank
            update of the pruned weights: ``"mask_lora"``, ``"scale_lora"``, ``"lora_prune"``, see :mod:`openwork.finetune.lora`.
        rank, alpha: of updates; 16 and 32 as in the paper.
        learning_rate: the paper searches 5e-6 to 5e-4; warms up over a tenth of the steps and falls to nothing.
        steps: of AdamW.
        accumulate: batches a step.
    """

    train: tuple[str, ...] = ("bias", "norm", "mask_lora")
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 5e-4
    steps: int = 1000
    accumulate: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_subsets(self.train, head=True)
        if self.steps < 0 or self.accumulate < 1:
            raise ValueError(f"steps and accumulate count; got {self.steps} and {self.accumulate}")

    def solve_model(
        self, model: nn.Module, masks: Mapping[str, Tensor], data: Sequence[Any], loss: Loss | None
    ) -> Mapping[str, Any]:
        order = self.generator("batches")
        queue: list[int] = []

        def one(_: int) -> Tensor:
            if not queue:
                queue.extend(torch.randperm(len(data), generator=order).tolist())
            return _loss(model, data[queue.pop()], loss)

        lora = LoRA(rank=self.rank, alpha=self.alpha, seed=self.seed)
        head = _head(model) if "head" in self.train else None
        with training(model, self.train, masks, lora, head) as subset:
            losses = train(
                subset.parameters,
                one,
                steps=self.steps,
                learning_rate=self.learning_rate,
                accumulate=self.accumulate,
                what="retraining a part",
            )
            subset.merge_()
        return {"trainable": subset.trainable, "of": subset.of, "losses": losses}


def _loss(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    inputs, targets = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
    outputs = run(model, inputs)
    outputs = getattr(outputs, "logits", outputs)
    if targets is not None:
        return (loss or F.cross_entropy)(outputs, targets)
    tokens = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
    if not isinstance(outputs, Tensor) or tokens.ndim != 2 or outputs.shape[:2] != tokens.shape:
        raise ValueError(
            "without targets, PERP predicts the next token, and this model has no logits [n, length, vocabulary]: give batches "
            "(inputs, targets) and a loss, or use PERPBlocks"
        )
    following = tokens[:, 1:].clone()
    if isinstance(inputs, Mapping) and (mask := inputs.get("attention_mask")) is not None:
        following[mask[:, 1:] == 0] = -100
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1).float(), following.flatten(), ignore_index=-100)


def _head(model: nn.Module) -> str:
    """Name of the weight of the output head."""
    getter = getattr(model, "get_output_embeddings", None)
    weights = prunable(model)
    module = getter() if callable(getter) else weights[-1].module if weights else None
    if not isinstance(module, nn.Linear):
        raise ValueError("train has 'head', and the model has no linear output head")
    head = next(w for w in weights if w.parameter is module.weight)
    if head.reason:
        raise ValueError(f"train has 'head', and {head.name} cannot change on its own: {head.reason}")
    return head.name
