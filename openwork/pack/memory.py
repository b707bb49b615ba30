"""Times measured before on this machine, so that packing again costs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from openwork.kernels import isa

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Memory:
    """Times by what was measured: a small JSON file, valid for one version, instruction set and number of threads.

    Args:
        path: of the file; by default one in the user's cache, named after the setting.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _own_file()
        self.known: dict[str, dict[str, float]] = {}
        # Without a file nothing was measured yet; a file of another form was not written by us.
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.known = msgspec.json.decode(self.path.read_bytes(), type=dict[str, dict[str, Seconds]])
        self.changed = False

    def recall(self, key: str) -> dict[str, float] | None:
        return self.known.get(key)

    def remember(self, key: str, times: dict[str, float]) -> None:
        self.known[key] = times
        self.changed = True

    def write(self) -> None:
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self.known, indent=0))
            temporary.replace(self.path)
        except OSError:
            pass  # a cache that cannot be written only costs time


def _own_file() -> Path:
    setting = [
        version("openwork"),
        torch.__version__,
        isa(),
        torch.get_num_threads(),
        os.cpu_count(),
        _processor(),
    ]
    digest = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:16]
    folder = (
        os.environ.get("OPENWORK_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openwork"
    )
    return Path(folder) / "pack" / f"{digest}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
