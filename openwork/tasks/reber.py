"""Strings of the Reber grammar, and strings with one wrong symbol: a small task for recurrent networks, made, not downloaded.

The grammar walks through five states; in each of them two symbols are allowed and lead on (A. S. Reber, Implicit learning of
artificial grammars, 1967). Whether a string belongs to it can be told only by remembering the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.tasks.task import Split, Task

SYMBOLS = "BTPSXVE"
MOVES = {0: "T1P2", 1: "S1X3", 2: "T2V4", 3: "X2S5", 4: "P3V5"}
"""In each state two symbols, and the state that each leads to; 5 is the end."""
LENGTH = 14
"""Longer strings are left out."""


def reber(train: int = 512, validation: int = 400, test: int = 400, *, seed: int = 0) -> Task:
    """The task: strings ``[n, 14, 7]``, one-hot and padded in front; class 1 where the grammar allows a string, as half of them.

    Args:
        train, validation, test: strings in each part, drawn independently.
        seed: of the draws.
    """
    return Task(
        name="reber",
        kind="classification",
        train=_split(train, 3 * seed),
        validation=_split(validation, 3 * seed + 1),
        test=_split(test, 3 * seed + 2),
        classes=("not allowed", "allowed"),
    )


def allowed(text: str) -> bool:
    """Whether a string, from ``B`` to ``E``, follows the grammar."""
    state = 0
    for symbol in text[1:-1]:
        moves = MOVES.get(state, "")
        if symbol not in moves[::2]:
            return False
        state = int(moves[2 * moves[::2].index(symbol) + 1])
    return state == 5


def _drawn(generator: torch.Generator) -> str:
    state, found = 0, "B"
    while state != 5:
        which = 2 * int(torch.randint(2, (1,), generator=generator))
        found, state = found + MOVES[state][which], int(MOVES[state][which + 1])
    return found + "E"


def _split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    texts: list[str] = []
    while len(texts) < count:
        text = _drawn(generator)
        if len(text) > LENGTH:
            continue
        if len(texts) % 2:
            at = 1 + int(torch.randint(len(text) - 2, (1,), generator=generator))
            wrong = SYMBOLS[1 + int(torch.randint(5, (1,), generator=generator))]
            text = text[:at] + wrong + text[at + 1 :]
            if allowed(text):
                continue
        texts.append(text)
    return Split(_one_hot(texts), torch.tensor([allowed(text) for text in texts]).long())


def _one_hot(texts: list[str]) -> Tensor:
    found = torch.zeros(len(texts), LENGTH, len(SYMBOLS))
    for row, text in enumerate(texts):
        for place, symbol in enumerate(text, LENGTH - len(text)):
            found[row, place, SYMBOLS.index(symbol)] = 1.0
    return found
