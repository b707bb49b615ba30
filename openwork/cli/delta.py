"""``openwork delta``: a fine-tuned transformer as a small file, for whoever has its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from openwork.cli.merge import merging
from openwork.cli.output import JSON, quiet_transformers, say, show


def delta(
    base: str,
    tuned: str,
    out: Path,
    /,
    *,
    method: str = "dare",
    sparsity: float | None = None,
    rescale: float | None = None,
    drop: Literal["random", "smallest"] | None = None,
    exclude: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    seed: int = 0,
    fill_zeros: bool = False,
    json: JSON = False,
) -> None:
    """Write a fine-tuned transformer as a thin delta of its base; "openwork merge BASE FILE OUT" gives the model back.

    Parameters
    ----------
    base
        The model that was fine-tuned: a folder with config.json and weights, or the id of a model on the hub.
    tuned
        What became of it.
    out
        The file to write, which does not exist yet.
    method
        What to keep of the changes: "dare" (whose random masks take no room), "ties" or "task_arithmetic".
    sparsity
        Part of the changes that is dropped; the method's default if not given.
    rescale
        For dare: what the changes that are kept are divided by, instead of the part that is kept.
    drop
        For dare: drop changes at random, or the smallest.
    exclude
        Globs of parameters whose changes are kept whole.
    seed
        Of random masks.
    fill_zeros
        Let changes fill zeros of the base's weight matrices, which stay zero otherwise.
    """
    found = merging(method, seed, exclude, sparsity=sparsity, rescale=rescale, drop=drop)
    quiet_transformers(to="compare Hugging Face models")
    from openwork.hf import write_delta
    from openwork.hf.folder import nbytes

    write_delta(base, tuned, out, found, keep_zeros=not fill_zeros)
    row: dict[str, object] = {"file": str(out), "bytes": out.stat().st_size}
    if Path(tuned).is_dir():
        row |= {"tuned model": nbytes(tuned), "share": round(out.stat().st_size / nbytes(tuned), 4)}
    show([row], as_json=json)
    say(f"openwork merge {base} {out} OUT --method task_arithmetic --scale 1 gives the model back")
