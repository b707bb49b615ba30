"""One judge for a model of transformers, before and after: perplexity, agreement with people, or likeness to what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwork.quality import cosine, embed, perplexity, read_pairs, similarity
from openwork.quality.similarity import Pair
from openwork.text import documents
from openwork.text.windows import encode

SENTENCES = 1000
"""Lines of a text on which embeddings are compared, at most."""


class Judge:
    """Measures a model on a file.

    ==================  ======================================  ===============================================
    model               file                                    measure
    ==================  ======================================  ===============================================
    of language         text                                    perplexity
    encoder             table with tabs (``.tsv``, ``.csv``)    Spearman's correlation with people
    encoder             text                                    mean cosine with the embeddings at first
    ==================  ======================================  ===============================================

    Args:
        model: as it is at first; what it says then is the reference.
        tokenizer: its tokenizer.
        file: to measure on.
        window: tokens a model of language sees at once; half of them at least before each one but the first.
    """

    def __init__(self, model: Any, tokenizer: Any, file: Path, window: int) -> None:
        self._model, self._tokenizer, self._window, self._file = model, tokenizer, window, file
        self._reference: Tensor | None = None
        self._tokens: Tensor | None = None
        self._pairs: list[Pair] | None = None
        self._lines: list[str] = []
        self._seqlen = min(128, longest(model) or 128)
        if file.suffix in (".tsv", ".csv"):
            self._pairs = read_pairs(file)
        elif is_causal(model):
            self._tokens = torch.tensor(encode(tokenizer, "\n\n".join(documents(file))), dtype=torch.int64)
        else:
            lines = (line.strip() for text in documents(file) for line in text.splitlines())
            self._lines = list(dict.fromkeys(line for line in lines if line))[:SENTENCES]
            self._reference = embed(model, tokenizer, self._lines, seqlen=self._seqlen)

    def measure(self) -> dict[str, float]:
        """What is measured, by name, of the model as it is now."""
        name = self._file.name
        if self._tokens is not None:
            stride = max(1, self._window // 2)
            found = perplexity(self._model, self._tokens, window=self._window, stride=stride)
            return {
                f"perplexity on {name} ({found.tokens} tokens, window {found.window}, stride {stride})": found.value
            }
        if self._pairs is not None:
            agreement = similarity(self._model, self._tokenizer, self._pairs, seqlen=self._seqlen)
            return {f"Spearman on {name} ({agreement.pairs} pairs)": agreement.spearman}
        assert self._reference is not None
        now = embed(self._model, self._tokenizer, self._lines, seqlen=self._seqlen)
        return {f"cosine with dense on {name} ({len(self._lines)} lines)": cosine(now, self._reference)}


def is_causal(model: Any) -> bool:
    """Whether a model of transformers predicts the next token."""
    return bool(model.can_generate())


def longest(model: Any) -> int | None:
    """How many tokens a model of transformers reads at once; None where its configuration does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None
