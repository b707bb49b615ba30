"""The tasks of lm-eval: questions, prompts and scoring as the whole field uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from openwork.extras import require


def harness(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None, batch: int = 8
) -> dict[str, dict[str, float]]:
    """Run tasks of lm-eval on a causal model of language.

    Args:
        model: of transformers, with ``generate``.
        tokenizer: its tokenizer.
        tasks: their names in lm-eval, such as ``["arc_easy", "hellaswag"]``; it downloads what they need.
        limit: questions of each task; all of them if None.
        batch: sequences a call.

    Returns:
        Task -> metric -> value, as lm-eval names them.

    Raises:
        MissingExtra: lm-eval is not installed.
    """
    lm_eval = require("lm_eval", extra="eval", to=f"run {', '.join(tasks)}")
    wrapped = require("lm_eval.models.huggingface", extra="eval", to="run a model in lm-eval").HFLM
    found = lm_eval.simple_evaluate(
        model=wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch), tasks=list(tasks), limit=limit
    )
    return {
        task: {metric: float(value) for metric, value in row.items() if isinstance(value, (int, float))}
        for task, row in found["results"].items()
    }
