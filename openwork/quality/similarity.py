"""How well an encoder of sentences agrees with people, or with the model it was made from."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.progress import track


class Pair(NamedTuple):
    """Two sentences, and how similar people find them: from 0, unrelated, to 5, the same."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Agreement:
    """How an encoder ranks pairs of sentences, against how people do.

    Attributes:
        spearman: rank correlation of the cosines of the embeddings with the scores, in [-1, 1].
        pairs: how many.
    """

    spearman: float
    pairs: int

    def __str__(self) -> str:
        return f"Spearman {self.spearman:.4f} ({self.pairs} pairs)"


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read pairs from a table with tabs between its columns.

    Both official forms of the Semantic Textual Similarity benchmark are understood: that of its authors (no header; score
    and sentences in columns 5 to 7) and that of GLUE (a header with ``sentence1``, ``sentence2`` and ``score``).

    Raises:
        ValueError: naming the line that is neither.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of text in UTF-8 ({error})") from error
    score, first, second, start = 4, 5, 6, 0
    if rows and {"sentence1", "sentence2", "score"} <= set(rows[0]):
        score, first, second, start = (*map(rows[0].index, ("score", "sentence1", "sentence2")), 1)
    pairs = []
    for number, row in enumerate(rows[start:], start + 1):
        try:
            pairs.append(Pair(row[first], row[second], float(row[score])))
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: no score and two sentences between tabs ({error})"
            ) from error
    if len(pairs) < 2:
        raise ValueError(f"{path}: a ranking needs at least two pairs; found {len(pairs)}")
    return pairs


@torch.no_grad()
def embed(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    sentences: Sequence[str],
    *,
    batch: int = 64,
    seqlen: int = 128,
) -> Float[Tensor, "sentences width"]:
    """Unit vectors of sentences: the mean of the last hidden states over real tokens, normalised, as sentence encoders do.

    Args:
        model: an encoder whose output has ``last_hidden_state``; put into evaluation mode and afterwards back.
        tokenizer: of transformers.
        sentences: any number.
        batch: sentences a call; those of similar length are taken together.
        seqlen: longer sentences are cut to this many tokens.
    """
    training = model.training
    model.eval()
    place = next(p.device for p in model.parameters())
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    found: dict[int, Tensor] = {}
    try:
        for i in track(range(0, len(order), batch), "embedding sentences"):
            some = order[i : i + batch]
            inputs = tokenizer(
                [sentences[j] for j in some],
                padding=True,
                truncation=True,
                max_length=seqlen,
                return_tensors="pt",
            ).to(place)
            states = model(**inputs).last_hidden_state.float()
            real = inputs["attention_mask"][..., None].float()
            means = (states * real).sum(1) / real.sum(1).clamp(min=1)
            found |= dict(zip(some, F.normalize(means, dim=1).cpu(), strict=True))
    finally:
        model.train(training)
    return torch.stack([found[i] for i in range(len(sentences))])


def similarity(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    pairs: Sequence[Pair],
    *,
    batch: int = 64,
    seqlen: int = 128,
) -> Agreement:
    """Rank pairs by the cosine of their embeddings and compare with how people rank them, see :func:`embed`."""
    texts = sorted({text for pair in pairs for text in pair[:2]})
    where = {text: i for i, text in enumerate(texts)}
    vectors = embed(model, tokenizer, texts, batch=batch, seqlen=seqlen)
    first = vectors[torch.tensor([where[pair.first] for pair in pairs])]
    second = vectors[torch.tensor([where[pair.second] for pair in pairs])]
    scores = torch.tensor([pair.score for pair in pairs], dtype=torch.float64)
    return Agreement(spearman((first * second).sum(1).double(), scores), len(pairs))


def cosine(embeddings: Float[Tensor, "n width"], reference: Float[Tensor, "n width"]) -> float:
    """Mean cosine between embeddings and those of another model, such as the dense one: 1 where nothing has changed."""
    if embeddings.shape != reference.shape:
        raise ValueError(
            f"embeddings {list(embeddings.shape)} are compared with {list(reference.shape)}: they must agree"
        )
    return float(F.cosine_similarity(embeddings.double(), reference.double(), dim=1).mean())


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of two vectors; equal values share the mean of their ranks. NaN where one is constant."""
    ranks = torch.stack([_ranks(x), _ranks(y)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    return float((ranks[0] @ ranks[1]) / (ranks[0].norm() * ranks[1].norm()))


def _ranks(x: Tensor) -> Tensor:
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    ranks: Tensor = (last - (count - 1) / 2).double()
    return ranks[place]
