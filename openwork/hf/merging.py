"""Fine-tuned models merged from folder to folder, and the thin delta of one written to a file."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from torch import Tensor

from openwork.durable import FileError
from openwork.files.delta import add_delta_, save_delta
from openwork.hf.card import Card
from openwork.hf.folder import existing, load, load_tokenizer, save
from openwork.hf.judge import Judge, is_causal, longest
from openwork.merger import Merged, Merging, merge_
from openwork.weights import prunable

LONGEST = 2048
"""Tokens in a window that quality is measured on, where the model reads as many."""


@dataclass(frozen=True)
class MergedFolder:
    """What :func:`merge` did.

    Attributes:
        folder: where the merged model is.
        done: what became of every parameter; print it.
        quality: rows ``measure``, ``base``, each tuned model, ``merged``.
    """

    folder: str
    done: Merged
    quality: tuple[dict[str, object], ...] = ()


def merge(
    base: str | os.PathLike[str],
    tuned: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: Merging,
    *,
    weights: Sequence[float] | None = None,
    keep_zeros: bool = True,
    evaluate: str | os.PathLike[str] | None = None,
    storage: Literal["dense", "sparse"] = "dense",
) -> MergedFolder:
    """Merge fine-tuned models into their base, and write a folder.

    Tuned models may have a head that the base lacks, such as a classifier: one model's is taken over whole, and those of several
    would have to be chosen from, so they are refused.

    Args:
        base: folder or hub id of the model that all were fine-tuned from; not changed.
        tuned: folders, hub ids, or files of :func:`openwork.save_delta`.
        out: a folder that does not exist yet.
        method, weights, keep_zeros: see :func:`openwork.merge_`.
        evaluate: a file to measure the base, every tuned model and the merged one on: text for a model of language, a table of
            sentence pairs for an encoder.
        storage: see :func:`openwork.hf.save`.

    Raises:
        FileError: a folder or file is not what it should be.
        ValueError: the models do not match. Nothing has been written then.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out}: something is there already; name a folder that does not exist yet")
    names = [Path(os.fspath(t)).name for t in tuned]
    network = _base(base, tuned)
    models = [_tuned(t, network) for t in tuned]
    tokenizer = _tokenizer((base, *tuned), evaluate)
    quality: dict[str, dict[str, object]] = {}
    if evaluate is not None:
        for name, model in (("base", network), *zip(names, models, strict=True)):
            _measure(quality, name, model, tokenizer, Path(evaluate))
    done = merge_(network, models, method, weights=weights, keep_zeros=keep_zeros)
    if evaluate is not None:
        _measure(quality, "merged", network, tokenizer, Path(evaluate))
    record = method.record() | {
        "base": os.fspath(base),
        "tuned": [os.fspath(t) for t in tuned],
        "weights": list(weights) if weights is not None else [1.0] * len(names),
        "keep_zeros": keep_zeros,
    }
    card = Card(
        base=os.fspath(base),
        history=[record],
        quality=tuple(quality.values()),
        sparse=storage == "sparse",
        loader=type(network).__name__,
        done=f"merged with {', '.join(names)}",
        tags=("openwork", "merge"),
    )
    save(
        network,
        out,
        tokenizer=tokenizer,
        storage=storage,
        masks=_zeros(network) if storage == "sparse" else None,
        history=[record],
        card=card,
    )
    return MergedFolder(os.fspath(out), done, tuple(quality.values()))


def write_delta(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: Merging,
    *,
    keep_zeros: bool = True,
) -> None:
    """Write what ``method`` leaves of a fine-tuned model to a file, see :func:`openwork.save_delta`.

    Args:
        base, tuned: folders or hub ids of models of one class.
        out: a file that does not exist yet.
        method, keep_zeros: see :func:`openwork.merge_`.

    Raises:
        FileError: a folder is not what it should be, or there is such a file already.
        ValueError: the models do not match.
    """
    if Path(out).exists():
        raise FileError(f"{out}: something is there already; name a file that does not exist yet")
    save_delta(out, load(base, dense=True), load(tuned, dense=True), method, keep_zeros=keep_zeros)


def _base(base: str | os.PathLike[str], tuned: Sequence[str | os.PathLike[str]]) -> Any:
    """The base, of the class of the tuned models; what only they have is taken from the one that there is."""
    network = load(base, dense=True)
    folders = [t for t in tuned if not Path(t).is_file()]
    kinds = {tuple(transformers.AutoConfig.from_pretrained(existing(t)).architectures or ()) for t in folders}
    kinds.discard(tuple(network.config.architectures or ()))
    if not kinds:
        return network
    if len(kinds) > 1 or len(tuned) > 1:
        told = ", ".join(sorted("/".join(kind) for kind in kinds))
        raise ValueError(
            f"the base is a {type(network).__name__} and what was tuned from it {told}: heads of several models cannot be put "
            "together; save the models without them, or merge one"
        )
    other = load(folders[0], dense=True)
    whole, info = type(other).from_pretrained(
        existing(base), config=copy.deepcopy(other.config), output_loading_info=True
    )
    state = other.state_dict()
    whole.load_state_dict({name: state[name] for name in info["missing_keys"]}, strict=False)
    return whole


def _tuned(tuned: str | os.PathLike[str], network: Any) -> Any:
    if not Path(tuned).is_file():
        return load(tuned, dense=True)
    model = copy.deepcopy(network)
    add_delta_(model, tuned)
    return model


def _tokenizer(folders: Sequence[str | os.PathLike[str]], evaluate: object) -> Any:
    """That of the first folder that has one; needed only to measure."""
    error: FileError | None = None
    for folder in folders:
        if Path(folder).is_file():
            continue
        try:
            return load_tokenizer(folder)
        except FileError as found:
            error = error or found
    if evaluate is not None and error is not None:
        raise error
    return None


def _measure(quality: dict[str, dict[str, object]], who: str, model: Any, tokenizer: Any, file: Path) -> None:
    if not is_causal(model) and file.suffix not in (".tsv", ".csv"):
        raise ValueError(f"an encoder is judged by pairs of sentences (.tsv or .csv), and {file} is none")
    window = min(LONGEST, longest(model) or LONGEST)
    for measure, value in Judge(model, tokenizer, file, window).measure().items():
        quality.setdefault(measure, {"measure": measure})[who] = value


def _zeros(network: Any) -> Mapping[str, Tensor]:
    return {
        w.name: w.oriented(w.parameter.detach() != 0)
        for w in prunable(network)
        if not w.reason and not bool(w.parameter.detach().all())
    }
