"""WikiText-2: two million words of Wikipedia's good articles, one token a word. CC BY-SA 3.0.

S. Merity, C. Xiong, J. Bradbury, R. Socher, Pointer sentinel mixture models, ICLR 2017, arXiv 1609.07843.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.tasks.sources import Source, read
from openwork.tasks.task import Task
from openwork.tasks.tiny_shakespeare import windows

END = "<eos>"
"""Stands behind every line, as is usual."""

_PLACE = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
TRAIN = Source(
    "wikitext2/wiki.train.tokens",
    f"{_PLACE}/train.txt",
    "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
)
VALIDATION = Source(
    "wikitext2/wiki.valid.tokens",
    f"{_PLACE}/valid.txt",
    "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
)
TEST = Source(
    "wikitext2/wiki.test.tokens",
    f"{_PLACE}/test.txt",
    "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
)


def wikitext2(*, context: int = 128, download: bool = False) -> Task:
    """The next word at every position of windows of ``context`` words that do not overlap.

    Words are those of the files, rare ones ``<unk>`` already; the vocabulary is that of the training part, 33 278 with the end of
    a line. Perplexities depend on ``context``, and those of models with other tokens cannot be compared with these.

    Raises:
        MissingData: a file is not on this machine and ``download`` is False.
    """
    parts = [words(read(s, download=download).decode("utf-8")) for s in (TRAIN, VALIDATION, TEST)]
    number: dict[str, int] = {}
    for word in parts[0]:
        number.setdefault(word, len(number))
    train, validation, test = (windows(_numbered(part, number), context) for part in parts)
    return Task("wikitext2", "language", train, validation, test, tuple(number))


def words(text: str) -> list[str]:
    """The words of a text, and :data:`END` behind every line."""
    return [word for line in text.splitlines() for word in (*line.split(), END)]


def _numbered(part: list[str], number: dict[str, int]) -> Tensor:
    return torch.tensor([number[word] for word in part])
