"""From one folder to another: load a model, measure it, make it sparse, measure again, save it with its card."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from openwork.calibrator import BlockCalibrated, Calibrated, Calibration, ModelCalibrated
from openwork.durable import FileError
from openwork.hf.card import Card
from openwork.hf.folder import load, load_tokenizer, nbytes, save
from openwork.hf.judge import Judge, is_causal, longest
from openwork.method import Method
from openwork.pruner import Pruned, Pruning, sparsify_
from openwork.text import batches, documents, windows
from openwork.timing import latencies
from openwork.weights import prunable

LONGEST = 2048
"""Tokens in a window of calibration data where nothing else is said and the model reads as many."""


@dataclass(frozen=True)
class Data:
    """Text to calibrate with.

    Attributes:
        source: a file or a data set, see :func:`openwork.text.documents`.
        samples: windows, or sentences for an encoder.
        seqlen: tokens in each; 2048 or as many as the model reads if None.
        batch: samples the model sees at once.
        join: join short documents.
        seed: of the choice.
    """

    source: str
    samples: int = 128
    seqlen: int | None = None
    batch: int = 8
    join: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Compressed:
    """What :func:`compress` did.

    Attributes:
        folder: where the model is now.
        done: what the methods did; print it.
        quality: rows ``measure``, ``dense``, ``sparse``.
        size: rows ``what``, ``dense``, ``sparse``: bytes.
        speed: rows ``what``, ``dense``, ``sparse``: milliseconds.
        seconds: from loading to saving.
        peak: the most memory that the process has held, in bytes.
    """

    folder: str
    done: Pruned | Calibration
    quality: tuple[dict[str, object], ...] = ()
    size: tuple[dict[str, object], ...] = ()
    speed: tuple[dict[str, object], ...] = ()
    seconds: float = 0.0
    peak: int = 0


def compress(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    stages: Sequence[Method],
    *,
    data: Data | None = None,
    evaluate: str | os.PathLike[str] | None = None,
    storage: Literal["dense", "sparse"] = "dense",
    resume: bool = False,
    speed: bool = False,
    **walk: Any,
) -> Compressed:
    """Make the model in a folder sparse and write it to another.

    Models of language are calibrated with windows of text and judged by their perplexity; encoders with sentences, and by how
    well they agree with people (a table of pairs, see :func:`openwork.quality.read_pairs`) or with the dense model (any other
    text: mean cosine of the embeddings).

    Args:
        model: a folder, or the id of a model on the hub.
        out: a folder that does not exist yet.
        stages: methods, in order; see :mod:`openwork.recipe`.
        data: text to calibrate with.
        evaluate: a file to measure quality on, before and after.
        storage: of the result, see :func:`openwork.hf.save`.
        resume: keep what is done, block by block, in the folder ``{out}.unfinished`` until all is, and go on from there.
        speed: also time a window of text, dense against what was saved, taking turns.
        walk: how calibration walks, see :func:`openwork.calibrator.calibrate_`.

    Raises:
        FileError: a folder is not what it should be.
        ValueError: the stages need data and there is none, or see :func:`openwork.sparsify_`. Nothing has been written then.
    """
    began = time.perf_counter()
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise FileError(f"{out}: something is there already; name a folder that does not exist yet")
    known = (Pruning, Calibrated, BlockCalibrated, ModelCalibrated)
    if other := [stage.name for stage in stages if not isinstance(stage, known)]:
        raise ValueError(f"{other[0]} works while a model trains; here a trained model is made sparse")
    calibrated = [stage.name for stage in stages if not isinstance(stage, Pruning)]
    if calibrated and data is None:
        raise ValueError(
            f"calibration data is what {', '.join(calibrated)} works from, and there is none: name a text "
            "(--data FILE, or data=Data('FILE'))"
        )
    network = load(model, dense=True)
    tokenizer = load_tokenizer(model) if data or evaluate or speed else None
    window = _window(network, data)
    samples = None if data is None else _samples(network, tokenizer, data, window)
    judge = None if evaluate is None else Judge(network, tokenizer, Path(evaluate), window)
    before = judge.measure() if judge else {}
    recipe = [_head_left_dense(network, stage) for stage in stages]
    unfinished = Path(f"{os.fspath(out).rstrip(os.sep)}.unfinished")
    done = _sparsified(network, recipe, samples, {**walk, "checkpoint": unfinished} if resume else walk)
    after = judge.measure() if judge else {}
    found = Compressed(
        folder=os.fspath(out),
        done=done,
        quality=tuple({"measure": name, "dense": before[name], "sparse": after[name]} for name in before),
    )
    history = [stage.record() for stage in recipe]

    def card(folder: Path) -> Card:
        nonlocal found
        dense = sum({id(p): p.nbytes for p in network.parameters()}.values())
        size = ({"what": "weights", "dense": dense, "sparse": nbytes(folder)},)
        times = _times(model, folder, tokenizer, window) if speed else ()
        found = dataclasses.replace(found, size=size, speed=times)
        return Card(
            base=os.fspath(model),
            history=history,
            layers=_layers(done),
            quality=found.quality,
            size=size,
            speed=times,
            sparse=storage == "sparse",
            loader=type(network).__name__,
        )

    masks = done.masks if storage == "sparse" else None
    save(network, out, tokenizer=tokenizer, storage=storage, masks=masks, history=history, card=card)
    if resume:
        shutil.rmtree(unfinished, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return dataclasses.replace(found, seconds=time.perf_counter() - began, peak=peak)


def _window(network: Any, data: Data | None) -> int:
    """Tokens the model shall see at once: as many as asked for, else 2048, and no more than it reads."""
    most = longest(network) or LONGEST
    asked = None if data is None else data.seqlen
    if asked is not None and asked > most:
        raise ValueError(
            f"windows of {asked} tokens were asked for, and this model reads {most}: ask for fewer"
        )
    return min(LONGEST, most) if asked is None else asked


def _samples(network: Any, tokenizer: Any, data: Data, window: int) -> list[Any]:
    texts = documents(data.source)
    if not is_causal(network):
        return list(
            batches(texts, tokenizer, samples=data.samples, seqlen=window, batch=data.batch, seed=data.seed)
        )
    tokens = windows(texts, tokenizer, samples=data.samples, seqlen=window, seed=data.seed, join=data.join)
    return list(tokens.split(data.batch))


def _head_left_dense(network: Any, stage: Method) -> Method:
    """The output head stays dense, as is usual for models of language; stages that walk the blocks do not see it anyway."""
    head = network.get_output_embeddings()
    name = next((w.name for w in prunable(network) if head is not None and w.module is head), None)
    if not isinstance(stage, Pruning) or name is None or name in stage.include:
        return stage
    return dataclasses.replace(stage, exclude=(*stage.exclude, name))


def _sparsified(
    network: nn.Module, stages: Sequence[Method], samples: list[Any] | None, walk: dict[str, Any]
) -> Pruned | Calibration:
    if len(stages) == 1 and isinstance(stages[0], Pruning):
        return sparsify_(network, stages[0], data=samples)
    recipe: Any = list(stages)  # each is one that sparsify_ knows: that was proven first
    done: Pruned | Calibration = sparsify_(network, recipe, data=samples, **walk)
    return done


def _layers(done: Pruned | Calibration) -> list[dict[str, object]]:
    rows = ((name, int(mask.sum()), mask.numel()) for name, mask in done.masks.items())
    return [{"parameter": name, "kept": kept, "of": of, "density": kept / of} for name, kept, of in rows]


def _times(
    model: str | os.PathLike[str], out: Path, tokenizer: Any, window: int
) -> tuple[dict[str, object], ...]:
    """Milliseconds for a window of text, the model as it was against the one that was saved."""
    dense, sparse = load(model, dense=True), load(out)
    tokens = torch.full((1, window), tokenizer.pad_token_id or 0)

    @torch.no_grad()
    def call(network: Any) -> None:
        network(tokens)

    found = latencies({"dense": lambda: call(dense), "sparse": lambda: call(sparse)}, seconds=4.0, rounds=5)
    row = {name: found[name].median * 1e3 for name in ("dense", "sparse")}
    what = f"ms for {window} tokens at once, {torch.get_num_threads()} threads"
    return ({"what": what, **row},)
