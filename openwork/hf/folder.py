"""Folders of Hugging Face: a model with its configuration and its tokenizer."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from openwork.durable import FileError
from openwork.files.container import write
from openwork.files.names import plain_state, shared_names
from openwork.files.stubs import stubs
from openwork.files.writing import arranged
from openwork.hf.card import Card
from openwork.hf.storage import SparseStorageConfig
from openwork.layouts.layer import SparseLayer
from openwork.weights import prunable

WEIGHTS = "model.safetensors"


def load(folder: str | os.PathLike[str], *, dense: bool = False, dtype: torch.dtype | str = "auto") -> Any:
    """Load a model with the class it was saved from, whatever that is.

    Args:
        folder: a folder, or the id of a model on the hub.
        dense: make the sparse layers of a sparse folder dense.
        dtype: of the weights; "auto" is what they were saved in.

    Returns:
        A ``transformers.PreTrainedModel`` in evaluation mode.

    Raises:
        FileError: the folder, its configuration or its weights are not those of a model.
    """
    folder = existing(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        record = getattr(config, "quantization_config", None)
        if dense and isinstance(record, dict) and record.get("quant_method") == "openwork":
            record["dense"] = True
        names = [name for name in config.architectures or () if hasattr(transformers, name)]
        cls = getattr(transformers, names[0]) if names else transformers.AutoModel
        return cls.from_pretrained(folder, config=config, dtype=dtype)
    except FileError:
        raise
    except Exception as error:  # transformers says in many ways that a folder is none of its own
        raise FileError(f"{folder}: no model can be loaded from there ({error})") from error


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        FileError: the folder has none.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(existing(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{folder}: no tokenizer can be loaded from there ({error})") from error


def save(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    storage: Literal["dense", "sparse"] = "dense",
    masks: Mapping[str, Tensor] | None = None,
    history: Sequence[Mapping[str, object]] = (),
    card: Card | Callable[[Path], Card] | None = None,
) -> None:
    """Write a model as a folder that ``from_pretrained`` loads; the model does not change.

    The folder appears at once when it is complete: an interruption leaves none.

    Args:
        model: a ``transformers.PreTrainedModel``, whose layers may be sparse.
        folder: to write; there must be nothing yet.
        tokenizer: to save beside it.
        storage: ``"dense"``: an ordinary folder with zeros in it, for any program. ``"sparse"``: kept weights and compact
            indices, smaller by the share that is kept; transformers loads it after ``import openwork.hf`` and refuses it
            without. Linear layers
            with zeros come back as :class:`~openwork.SparseLinear`, tied ones excepted; other parameters come back dense.
        masks: what :func:`openwork.sparsify_` says is kept, ``[out, in]`` by parameter name, where kept weights may be zero;
            only the sparse storage has a place for them.
        history: what was done to the model, kept in the header of a sparse file.
        card: written as ``README.md``; or a function that makes one of the finished folder.

    Raises:
        FileError: the folder exists and is not empty, it cannot be written, a mask does not fit, or the model has parameters
            that its class would not have when it is loaded, such as an added bias.
    """
    if storage not in ("dense", "sparse"):
        raise FileError(f"storage is 'dense' or 'sparse', not {storage!r}")
    if not isinstance(model, transformers.PreTrainedModel):
        raise FileError(
            f"a folder holds a model of transformers, not a {type(model).__name__}; see openwork.save"
        )
    with appearing(Path(folder)) as unfinished, _as_dense(model):
        _check_loadable(model)
        if storage == "dense":
            model.save_pretrained(unfinished, state_dict=_dense_state(model))
        else:
            _save_sparse(model, unfinished, masks, history)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        if card is not None:
            page = card if isinstance(card, Card) else card(unfinished)
            (unfinished / "README.md").write_text(str(page), encoding="utf-8")


def nbytes(folder: str | os.PathLike[str]) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def _check_loadable(model: Any) -> None:
    """Prove that loading will find a place for every tensor, and a tensor for every place."""
    with torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    expected, found = set(fresh.state_dict()), set(plain_state(model))
    if extra := sorted(found - expected):
        raise FileError(
            f"{extra[0]} is in the model, and a {type(model).__name__} of this configuration has none: it would be lost on "
            f"loading{f' (and {len(extra) - 1} more)' if len(extra) > 1 else ''}; see openwork.save"
        )
    if missing := sorted(expected - found):
        raise FileError(
            f"{missing[0]} of a {type(model).__name__} is not in the model: a module was replaced, and loading would draw it at "
            "random; see openwork.save"
        )


def _save_sparse(
    model: Any, folder: Path, masks: Mapping[str, Tensor] | None, history: Sequence[Mapping[str, object]]
) -> None:
    shared = shared_names(plain_state(model))
    tied = {*shared, *shared.values()}  # transformers ties them while loading, which takes a dense tensor
    layers = [
        name for name, m in model.named_modules() if type(m) is nn.Linear and f"{name}.weight" not in tied
    ]
    arrays, header = arranged(
        model, masks=_as_held(model, masks or {}), history=history, as_is=tied, as_layers=layers
    )
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.quantization_config = SparseStorageConfig().to_dict()
    try:
        config.save_pretrained(folder)
    finally:
        del config.quantization_config
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    write(folder / WEIGHTS, arrays | stubs(header, arrays), header.metadata())


def _as_held(model: Any, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks in the order and shape in which the model holds its parameters: some hold inputs first, some all experts."""
    held = dict(masks)
    for w in prunable(model):
        mask = held.get(w.name)
        if mask is not None and tuple(mask.shape) == w.shape and not w.stored:
            held[w.name] = (mask.transpose(0, 1) if w.transposed else mask).reshape(w.parameter.shape)
    return held


def _dense_state(model: Any) -> dict[str, Tensor]:
    return {
        name: value.weight if isinstance(value, SparseLayer) else value.detach()
        for name, value in plain_state(model).items()
    }


@contextmanager
def _as_dense(model: Any) -> Iterator[None]:
    """While it is saved, nothing in the model or its configuration tells how it was loaded."""
    record = getattr(model.config, "quantization_config", None)
    quantizer = model.__dict__.pop("hf_quantizer", None)
    if record is not None:
        del model.config.quantization_config
    try:
        yield
    finally:
        if record is not None:
            model.config.quantization_config = record
        if quantizer is not None:
            model.hf_quantizer = quantizer


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill beside ``folder``, which takes its place when all went well."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder}: something is there already; name a folder that does not exist yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".openwork-{secrets.token_hex(8)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        raise FileError(f"{folder}: could not be written ({error}); has the disk room?") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def existing(folder: str | os.PathLike[str]) -> str:
    """A folder as transformers takes it. What looks like a path and is none must not be asked of the hub."""
    path = Path(folder)
    text = os.fspath(folder)
    looks_like_a_path = path.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1
    if not path.exists() and (looks_like_a_path or "/" not in text):
        raise FileError(f"{folder}: there is no such folder")
    if path.exists() and not (path / "config.json").is_file():
        raise FileError(f"{folder}: no config.json in it, so it is not the folder of a Hugging Face model")
    return text
