"""Perplexity: how many tokens a model of language hesitates between, on average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from openwork.progress import phase


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and what it was measured on. Compare only those of equal tokens, window and stride.

    Attributes:
        value: ``exp(loss)``.
        loss: mean of ``-log p(token | the tokens before it in its window)``, in nats.
        tokens: how many were predicted; the first of a window has nothing before it.
        window: tokens the model sees at once.
        stride: tokens from the beginning of a window to that of the next.
    """

    value: float
    loss: float
    tokens: int
    window: int
    stride: int

    def __str__(self) -> str:
        return f"perplexity {self.value:.4g} ({self.tokens} tokens, windows of {self.window}, stride {self.stride})"


@torch.no_grad()
def perplexity(
    model: nn.Module | Callable[[Tensor], Any],
    tokens: Int64[Tensor, " n"],
    *,
    window: int = 2048,
    stride: int | None = None,
    batch: int = 1,
) -> Perplexity:
    """Perplexity of a text under a sliding window, each token predicted once.

    Windows begin at 0, ``stride``, ``2 stride``, ... and the last one ends with the text. In each, only those tokens count
    that no window before has predicted, so with a small stride every token but the first few sees at least
    ``window - stride`` tokens before it. ``stride = window`` is the quick way of most papers on compression: windows that do
    not overlap, whose first token is predicted by nobody.

    Args:
        model: from tokens ``[batch, window]`` to logits ``[batch, window, vocabulary]``, or to an output that has ``logits``.
            A module is put into evaluation mode and afterwards back.
        tokens: the text.
        window: tokens the model sees at once.
        stride: at most ``window``, which is also the default.
        batch: windows a call.

    Returns:
        The perplexity; NaN or infinite where the model's loss is.

    Raises:
        ValueError: fewer than two tokens, or a stride that is not within 1 and the window.
    """
    stride = window if stride is None else stride
    if tokens.ndim != 1 or len(tokens) < 2:
        raise ValueError(
            f"perplexity needs at least two tokens in a row; got a tensor of shape {list(tokens.shape)}"
        )
    if window < 2 or not 1 <= stride <= window:
        raise ValueError(
            f"a window has at least 2 tokens and a stride of 1 to window; got {window} and {stride}"
        )
    if batch < 1:
        raise ValueError(f"batch is at least 1; got {batch}")
    spans = list(_spans(len(tokens), window, stride))
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
        place = next((p.device for p in model.parameters()), tokens.device)
    else:
        place = tokens.device
    loss, count = 0.0, 0
    try:
        with phase("measuring perplexity", len(spans)) as bar:
            for group in _batched(spans, batch):
                inputs = torch.stack([tokens[begin:end] for begin, end, _ in group]).to(place)
                output = model(inputs)
                logits = output if isinstance(output, Tensor) else output.logits
                for row, (begin, end, fresh) in zip(logits, group, strict=True):
                    first = max(fresh, begin + 1)
                    targets = tokens[first:end].to(row.device)
                    loss += _surprise(row[first - begin - 1 : end - begin - 1], targets)
                    count += end - first
                bar.advance(len(group))
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    mean = loss / count
    return Perplexity(math.inf if mean > 700 else math.exp(mean), mean, count, window, stride)


def _spans(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first token that no window before has seen) of every window."""
    seen = 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        if end > max(seen, begin + 1):  # a window of one token predicts nothing
            yield begin, end, seen
        seen = end
        if end == length:
            return


def _batched(spans: list[tuple[int, int, int]], batch: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of equal length, ``batch`` at a time; the last one may be shorter and comes alone."""
    full = [span for span in spans if span[1] - span[0] == spans[0][1] - spans[0][0]]
    for i in range(0, len(full), batch):
        yield full[i : i + batch]
    yield from ([span] for span in spans[len(full) :])


def _surprise(logits: Tensor, targets: Tensor) -> float:
    """Sum of ``-log softmax(logits)[target]``, added up in float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return float((logits.logsumexp(1) - chosen).double().sum())
