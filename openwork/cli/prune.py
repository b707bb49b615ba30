"""``openwork prune``: make a trained transformer sparse, from one Hugging Face folder to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from openwork.cli.output import JSON, quiet_transformers, say, show_json, show_rounded

if TYPE_CHECKING:
    from openwork.hf import Compressed
    from openwork.method import Method


def prune(
    model: str,
    out: Path,
    /,
    *,
    method: str | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    allocation: str | None = None,
    repair: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    recipe: Path | None = None,
    data: str | None = None,
    samples: int = 128,
    seqlen: int | None = None,
    batch: int = 8,
    join: bool = False,
    seed: int = 0,
    exclude: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    blocks: str = "auto",
    format: Literal["dense", "sparse"] = "dense",
    evaluate: Path | None = None,
    resume: bool = False,
    speed: bool = False,
    json: JSON = False,
) -> None:
    """Make a trained transformer sparse without training it again: from the folder of a Hugging Face model to another.

    Parameters
    ----------
    model
        A folder with config.json and weights, or the id of a model on the hub.
    out
        A folder that does not exist yet.
    method
        How to choose what stays, such as "sparsegpt", "wanda" or "magnitude", see "openwork methods".
    sparsity
        Fraction of zeros; the method's default if not given.
    pattern
        Which masks are legal, such as "2:4" (which keeps half, whatever the sparsity says) or "unstructured".
    allocation
        How the total is split among parameters, such as "uniform", "global" or "lamp"; the method's own if not given.
    repair
        Methods to mend what is left, in order, such as "refit", "dsnot", "bias_correct" or "perp_blocks".
    recipe
        A TOML file of stages with all their options, instead of method and repair.
    data
        Text to calibrate with: a .txt file, a .jsonl file with a "text" in every line, or a data set of the hub.
    samples
        Windows of text to calibrate with; sentences for an encoder.
    seqlen
        Tokens in each: 2048, or as many as the model reads.
    batch
        Samples the model sees at once.
    join
        Join short documents.
    seed
        Of the choice of samples, and of the methods.
    exclude
        Globs of parameters to leave dense.
    blocks
        Where the blocks of the model are, if they are not found: the name of the module that holds them.
    format
        "dense" loads everywhere; "sparse" is smaller on disk by what is pruned, and needs openwork to load.
    evaluate
        A file to measure quality on, before and after: text, or a table of sentence pairs for an encoder.
    resume
        Keep every finished block in the folder OUT.unfinished, which goes when all is done: after an interruption, the same
        command goes on from there and ends in the same bits.
    speed
        Also time a window of text, the model as it was against the one that was saved.
    """
    stages = _stages(
        recipe,
        method,
        repair,
        seed,
        exclude,
        {"sparsity": sparsity, "pattern": pattern, "allocation": allocation},
    )
    quiet_transformers(to="prune a Hugging Face model")
    from openwork.hf import Data, compress

    text = None if data is None else Data(data, samples, seqlen, batch, join, seed)
    found = compress(
        model,
        out,
        stages,
        data=text,
        evaluate=evaluate,
        storage=format,
        resume=resume,
        speed=speed,
        blocks=blocks,
    )
    if json:
        show_json(_record(found, stages))
        return
    print(found.done)
    for rows in (found.quality, found.size, found.speed):
        show_rounded(rows)
    say(
        f"\n{found.seconds:.0f} s, at most {found.peak / 2**20:.0f} MiB of memory; the model is in {found.folder}"
    )


def _stages(
    recipe: Path | None,
    method: str | None,
    repair: tuple[str, ...],
    seed: int,
    exclude: tuple[str, ...],
    options: dict[str, object],
) -> list[Method]:
    """The methods that were asked for, by name or in a file."""
    from openwork.recipe import read, stage

    given = {key: value for key, value in options.items() if value is not None}
    if recipe is not None:
        if mixed := [
            *(["method"] if method else []),
            *(["repair"] if repair else []),
            *given,
            *(["exclude"] * bool(exclude)),
        ]:
            raise ValueError(
                f"the recipe {recipe} says all about its stages: leave out --{', --'.join(mixed)}"
            )
        return read(recipe)
    if method is None:
        raise ValueError("name a method (--method sparsegpt) or a recipe (--recipe FILE.toml)")
    if exclude:
        given["exclude"] = list(exclude)
    common = {"seed": seed, **({"exclude": list(exclude)} if exclude else {})}
    return [
        stage({"method": method, "seed": seed, **given}, "--method"),
        *(stage({"method": name, **common}, "--repair") for name in repair),
    ]


def _record(found: Compressed, stages: list[Method]) -> dict[str, object]:
    table = found.done.plan
    lines = getattr(found.done, "lines", ())
    return {
        "folder": found.folder,
        "recipe": [stage.record() for stage in stages],
        "kept": table.kept,
        "numel": table.numel,
        "sparsity": table.sparsity,
        "layers": [
            {"name": name, "kept": int(mask.sum()), "numel": mask.numel()}
            for name, mask in found.done.masks.items()
        ],
        "stages": [dataclasses.asdict(line) for line in lines],
        "quality": found.quality,
        "size": found.size,
        "speed": found.speed,
        "seconds": found.seconds,
        "peak_bytes": found.peak,
    }
