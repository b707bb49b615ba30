"""Windows of tokens: the form in which a model of language sees its calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

from openwork.progress import track

Tokenizer: TypeAlias = Callable[..., Any]
"""A tokenizer of transformers, or any function from a text to its tokens."""

ENOUGH = 20_000
"""Documents that are looked at, at most: a data set of the hub may have no end."""


def windows(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    join: bool = False,
) -> Int64[Tensor, "samples seqlen"]:
    """Random windows from documents longer than a window, the calibration data of SparseGPT, Wanda and their followers.

    For every sample a document is drawn at random, again and again until one is longer than ``seqlen`` tokens, and a window
    is cut from a random place of it. A single long document gives all of them. Defaults (128 windows of 2048 tokens) are
    those of Frantar and Alistarh, SparseGPT, 2023.

    Args:
        texts: documents; the first 20 000 are used.
        tokenizer: of the model, called on whole documents; tokens that it puts before a text stay there.
        samples: number of windows.
        seqlen: tokens in each.
        seed: of the choice; the same seed gives the same windows on every machine.
        join: first join the documents with an empty line between them, so that short ones serve too.

    Raises:
        ValueError: no document is longer than a window; says how long the longest is.
    """
    if samples < 1 or seqlen < 1:
        raise ValueError(f"samples and seqlen are at least 1; got {samples} and {seqlen}")
    found = list(islice(texts, ENOUGH))
    if join:
        found = ["\n\n".join(found)]
    generator = torch.Generator().manual_seed(seed)
    tokens: dict[int, Tensor] = {}
    places = list(range(len(found)))
    chosen = []
    for _ in track(range(samples), "cutting windows of text"):
        while places:
            place = places[_below(len(places), generator)]
            if place not in tokens:
                tokens[place] = torch.tensor(encode(tokenizer, found[place]), dtype=torch.int64)
            if len(tokens[place]) > seqlen:
                break
            places.remove(place)  # too short: the next draw is among the others
        else:
            longest = max(map(len, tokens.values()), default=0)
            raise ValueError(
                f"windows of {seqlen} tokens need a document that is longer, and the longest of {len(found)} has "
                f"{longest} tokens: ask for a smaller seqlen, or join the documents (join=True)"
            )
        start = _below(len(tokens[place]) - seqlen, generator)
        chosen.append(tokens[place][start : start + seqlen])
    return torch.stack(chosen)


def batches(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    samples: int = 128,
    seqlen: int = 128,
    batch: int = 16,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Padded batches of whole short texts, for models that read a sentence at a time.

    Args:
        texts: one example each; the lines of a document that has several are one each.
        tokenizer: of transformers; it pads, and puts its special tokens around every text.
        samples: number of texts, drawn without repetition; all of them where there are fewer.
        seqlen: longer texts are cut to this many tokens.
        batch: texts in a batch.
        seed: of the choice.

    Returns:
        What the tokenizer gives, with an ``attention_mask`` that is 0 where a text was padded.
    """
    lines = [line.strip() for text in islice(texts, ENOUGH) for line in text.splitlines() if line.strip()]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    chosen = [lines[place] for place in order]
    return [
        dict(
            tokenizer(
                chosen[i : i + batch], padding=True, truncation=True, max_length=seqlen, return_tensors="pt"
            )
        )
        for i in range(0, len(chosen), batch)
    ]


def encode(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    """The tokens of a text, however long it is."""
    # Tokenizers of transformers warn of texts longer than the model reads at once, which is what windows are for.
    quietly = {"verbose": False} if hasattr(tokenizer, "model_max_length") else {}
    found = tokenizer(text, **quietly)
    tokens: Sequence[int] = found["input_ids"] if isinstance(found, Mapping) else found
    return tokens


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
