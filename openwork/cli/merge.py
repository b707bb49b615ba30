"""``openwork merge``: several fine-tuned transformers in one, from Hugging Face folders to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from openwork.cli.output import JSON, quiet_transformers, say, show_json, show_rounded

if TYPE_CHECKING:
    from openwork.merger import Merging


def merge(
    base: str,
    /,
    *models: str,
    method: str = "ties",
    sparsity: float | None = None,
    scale: float | None = None,
    rescale: float | None = None,
    drop: Literal["random", "smallest"] | None = None,
    combine_by: Literal["sum", "ties"] | None = None,
    pattern: str | None = None,
    allocation: str | None = None,
    weights: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (),
    exclude: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    seed: int = 0,
    fill_zeros: bool = False,
    format: Literal["dense", "sparse"] = "dense",
    evaluate: Path | None = None,
    json: JSON = False,
) -> None:
    """Merge what several fine-tunings of one model have learned: openwork merge BASE A B OUT.

    Parameters
    ----------
    base
        The model that all were fine-tuned from: a folder with config.json and weights, or the id of a model on the hub.
    models
        The fine-tuned models (folders, ids, or files that "openwork delta" wrote), and last the folder to write, which does not
        exist yet.
    method
        How to merge: "ties", "dare" or "task_arithmetic", see "openwork methods".
    sparsity
        Part of every model's changes that is dropped; the method's default if not given.
    scale
        What the merged change is multiplied with.
    rescale
        For dare: what the changes that are kept are divided by, instead of the part that is kept.
    drop
        For dare: drop changes at random, or the smallest.
    combine_by
        For dare: add what is left, or elect signs as TIES does.
    pattern
        Which masks are legal, such as "block 1x16" or "unstructured".
    allocation
        How what is kept is split among parameters, such as "uniform" or "global".
    weights
        A factor for each model's changes, in order; 1 each if not given.
    exclude
        Globs of parameters whose changes are kept whole.
    seed
        Of random masks.
    fill_zeros
        Let changes fill zeros of the base's weight matrices, which stay zero otherwise.
    format
        "dense" loads everywhere; "sparse" is smaller on disk by the zeros of the base, and needs openwork to load.
    evaluate
        A file to measure quality on: text, or a table of sentence pairs for an encoder.
    """
    if len(models) < 2:
        raise ValueError("name the fine-tuned models and the folder to write: openwork merge BASE A B OUT")
    *tuned, out = models
    found = merging(
        method,
        seed,
        exclude,
        sparsity=sparsity,
        scale=scale,
        rescale=rescale,
        drop=drop,
        combine_by=combine_by,
        pattern=pattern,
        allocation=allocation,
    )
    quiet_transformers(to="merge Hugging Face models")
    from openwork.hf import merge as merge_folders

    done = merge_folders(
        base,
        tuned,
        out,
        found,
        weights=weights or None,
        keep_zeros=not fill_zeros,
        evaluate=evaluate,
        storage=format,
    )
    if json:
        show_json(
            {
                "folder": done.folder,
                "method": found.record(),
                "zeros": done.done.zeros,
                "parameters": [dataclasses.asdict(row) for row in done.done],
                "quality": done.quality,
            }
        )
        return
    print(done.done)
    show_rounded(done.quality)
    say(f"\nthe merged model is in {done.folder}")


def merging(name: str, seed: int, exclude: tuple[str, ...], **options: object) -> Merging:
    """The method of that name with the options that were given.

    Raises:
        ValueError: there is none, it has no such option, or it does not merge.
    """
    from openwork.merger import Merging
    from openwork.recipe import stage

    given = {key: value for key, value in options.items() if value is not None}
    found = stage({"method": name, "seed": seed, "exclude": list(exclude), **given}, "--method")
    if not isinstance(found, Merging):
        raise ValueError(
            f"--method: {found.name} does not merge models: choose ties, dare or task_arithmetic"
        )
    return found
