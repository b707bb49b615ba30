"""The official files of a data set: where they lie, that they are the right ones, and where they come from.

A file is looked for below ``$OPENWORK_DATA`` and then below the user's cache (``$XDG_CACHE_HOME/openwork``,
else ``~/.cache/openwork``), in a folder named after the data set. It is downloaded into the cache only when
that is asked for. Its content is compared with a checksum at every reading, wherever it came from.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from openwork.progress import phase

_CHUNK = 1 << 18
LARGEST = 1 << 28
"""Bytes that a packed file may unfold to: more than any official one does."""

_PATIENCE = 30.0
"""Seconds without an answer after which a download is given up."""


@dataclass(frozen=True)
class Source:
    """One official file.

    Attributes:
        path: below a data folder, such as ``mnist/train-images-idx3-ubyte.gz``.
        url: where its owners, or PyTorch's mirror of them, offer it.
        sha256: of the content; of a ``.gz`` file the content inside, since anyone may have packed it again.
    """

    path: str
    url: str
    sha256: str


class MissingData(FileNotFoundError):
    """A data set's file is nowhere to be found, and nobody allowed its download."""


class WrongData(ValueError):
    """A file is there, but it is not the official one."""


def folders() -> list[Path]:
    """The folders that are searched, first match first; the last one is the cache, where downloads go."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openwork"
    chosen = os.environ.get("OPENWORK_DATA")
    return [Path(chosen).expanduser(), cache] if chosen else [cache]


def find(path: str) -> Path | None:
    """Where ``path`` lies in the data folders, or None."""
    return next((folder / path for folder in folders() if (folder / path).is_file()), None)


def read(source: Source, *, download: bool = False) -> bytes:
    """The content of a file, unpacked and proven right.

    Args:
        source: what to read.
        download: fetch it from ``source.url`` if it is not there.

    Raises:
        MissingData: the file is not there and ``download`` is False.
        WrongData: the content is not the official one.
        OSError: the download failed.
    """
    found = find(source.path)
    if found is not None:
        return _verified(found.read_bytes(), source, str(found))
    if not download:
        raise missing(source)
    packed = _fetch(source.url, source.path)
    content = _verified(packed, source, source.url)
    write(folders()[-1] / source.path, packed)
    return content


def missing(source: Source) -> MissingData:
    """The error that says where the file would be looked for, and how to get it."""
    name = source.path.split("/")[0]
    places = " or ".join(str(folder / source.path) for folder in folders())
    error = MissingData(f"the data set {name} needs a file that is not on this machine: {source.path}")
    error.add_note(f"put {source.url} at {places}")
    error.add_note(f"or allow the download: openwork.tasks.get({name!r}, download=True)")
    return error


def write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _verified(packed: bytes, source: Source, place: str) -> bytes:
    is_packed = source.path.endswith(".gz") and not source.path.endswith(".tar.gz")
    try:
        content = _unpacked(packed) if is_packed else packed
    except (OSError, EOFError, zlib.error) as reason:
        raise _wrong(place, f"it cannot be unpacked ({reason})") from reason
    if len(content) > LARGEST:
        raise _wrong(place, f"it unfolds to more than {LARGEST} bytes")
    return verified(content, source.sha256, place)


def _unpacked(packed: bytes) -> bytes:
    """What is in a ``.gz``, and no more than one byte beyond what any official one holds."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        return file.read(LARGEST + 1)


def verified(content: bytes, sha256: str, place: str) -> bytes:
    """``content``, or :class:`WrongData` where its checksum is not ``sha256``."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _wrong(place, f"its sha256 is {found}, the official one {sha256}")
    return content


def _wrong(place: str, reason: str) -> WrongData:
    error = WrongData(f"{place} is not the official file: {reason}")
    error.add_note("remove it and fetch it again; a download that was cut short is the usual cause")
    return error


def _fetch(url: str, path: str) -> bytes:
    received = bytearray()
    with urlopen(url, timeout=_PATIENCE) as answer:
        length = answer.headers.get("Content-Length")
        with phase(f"downloading {path}", int(length) if length else None) as bar:
            while chunk := answer.read(_CHUNK):
                received += chunk
                bar.advance(len(chunk))
    return bytes(received)
