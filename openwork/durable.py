"""A file is written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


class FileError(ValueError):
    """A file cannot be written, or what it holds cannot be believed."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], nbytes: int) -> Iterator[Path]:
    """A temporary name to write to, beside ``path``: what is written moves to ``path`` once it is on disk.

    Args:
        path: of the file; a link is followed.
        nbytes: how much there is to write, for the error.

    Raises:
        FileError: it could not be written; whatever was at ``path`` is still there, whole.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise FileError(f"{path}: this is a folder; add a file name, such as {path / 'model.safetensors'}")
    temporary = path.with_name(f".openwork-{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(mode)  # that of any new file, which safetensors alone keeps to its owner
        _flush(temporary)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise FileError(
            f"{path}: could not write {nbytes} bytes ({error}); is the folder writable, and has the disk room? "
            "What was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot; the file itself is safe already
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk and not only on their way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
