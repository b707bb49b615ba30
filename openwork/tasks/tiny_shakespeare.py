"""Tiny Shakespeare: 1.1 million characters of plays, one token a character. Public domain.

Collected by A. Karpathy, The unreasonable effectiveness of recurrent neural networks, 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.tasks.sources import Source, read
from openwork.tasks.task import Split, Task

TEXT = Source(
    "tiny_shakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def tiny_shakespeare(*, context: int = 128, download: bool = False) -> Task:
    """The next character at every position of windows of ``context`` characters that do not overlap.

    The last tenth of the text is the test part, as is usual; the tenth before it is for validation.
    Perplexities depend on ``context``: compare only equal ones.

    Raises:
        MissingData: the file is not on this machine and ``download`` is False.
    """
    text = read(TEXT, download=download).decode("ascii")
    alphabet = tuple(sorted(set(text)))
    number = {character: i for i, character in enumerate(alphabet)}
    tokens = torch.tensor([number[character] for character in text])
    first, second = len(text) * 8 // 10, len(text) * 9 // 10
    return Task(
        name="tiny_shakespeare",
        kind="language",
        train=windows(tokens[:first], context),
        validation=windows(tokens[first:second], context),
        test=windows(tokens[second:], context),
        classes=alphabet,
    )


def windows(tokens: Tensor, context: int) -> Split:
    """Cut ``tokens [n]`` into inputs ``[count, context]`` and the same moved on by one; what is left over is
    dropped.

    Raises:
        ValueError: there is not enough for one window.
    """
    count = (len(tokens) - 1) // context if context > 0 else 0
    if count < 1:
        raise ValueError(
            f"windows of {context} tokens need at least {max(context, 1) + 1}; found {len(tokens)}"
        )
    used = count * context
    return Split(tokens[:used].view(count, context), tokens[1 : used + 1].view(count, context))
