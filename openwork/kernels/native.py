"""The compiled kernels, and which of their instruction set levels is in use.

Two environment variables, read once:

- `OPENWORK_ISA`: a level (`portable`, `avx2`, `avx512`, `avx512bf16`) instead of the richest the machine has.
- `OPENWORK_NATIVE=0`: compute everything with `openwork.kernels.reference`.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import torch  # before the native module, so that both use the OpenMP runtime that torch brings

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")


def _asked_for_native() -> bool:
    asked = os.environ.get("OPENWORK_NATIVE", "1")
    if asked not in ("0", "1"):
        raise ValueError(f"OPENWORK_NATIVE={asked!r} is not understood: use 1 (native) or 0 (plain PyTorch).")
    return asked == "1"


_ENABLED = _asked_for_native()


def enabled() -> bool:
    """Whether float32 CPU tensors are computed natively. False only if OPENWORK_NATIVE=0 asks for it."""
    return _ENABLED


@cache
def library() -> ModuleType:
    """The native module.

    Raises:
        ImportError: it was not built or does not load. There is no silent fall-back to slow code.
    """
    try:
        module = importlib.import_module("openwork.kernels._native")
    except ImportError as error:
        raise ImportError(
            f"The native kernels of openwork did not load ({error}). They are compiled when installed: "
            "run `pip install openwork`, or in a checkout `pip install -e .`, with a C++20 compiler at hand. "
            "To compute with plain PyTorch instead, which is slow, set OPENWORK_NATIVE=0."
        ) from error
    runtimes = openmp_runtimes()
    if len(runtimes) > 1:
        warnings.warn(
            f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(sorted(runtimes))}): "
            "their threads fight for the cores, which can make parallel code many times slower. Import torch "
            "before other native libraries.",
            RuntimeWarning,
            stacklevel=2,
        )
    return module


@cache
def isa() -> str:
    """The level in use: `portable`, `avx2`, `avx512` or `avx512bf16`; `reference` if OPENWORK_NATIVE=0.

    Raises:
        ValueError: OPENWORK_ISA names a level that does not exist or that this machine cannot run.
    """
    if not enabled():
        return "reference"
    available: tuple[str, ...] = library().levels
    asked = os.environ.get("OPENWORK_ISA")
    if asked is None:
        return available[-1]
    if asked not in LEVELS:
        raise ValueError(f"OPENWORK_ISA={asked!r} is not a level; the levels are {', '.join(LEVELS)}.")
    if asked not in available:
        raise ValueError(
            f"OPENWORK_ISA={asked!r} asks for instructions this machine does not have; it runs "
            f"{', '.join(available)}. Unset OPENWORK_ISA to use the best of these."
        )
    return asked


@cache
def kernels() -> ModuleType:
    """The kernels of the level in use. Arguments are addresses and sizes; see the pages in csrc/kernels/."""
    return getattr(library(), isa())  # type: ignore[no-any-return]


def openmp_runtimes() -> set[str]:
    """Files of the OpenMP runtimes mapped into this process that we could share with torch (Linux; empty elsewhere).

    A copy that a wheel carries for itself (renamed, as in ``libgomp-1a2b3c4d.so.1``) has threads of its own; they sleep while
    that package does nothing, and do not count.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return set()
    files = {line[line.index("/") :] for line in maps.read_text().splitlines() if "/" in line}
    return {file for file in files if re.match(r"lib(gomp|omp|iomp5)\.", Path(file).name)}


def threads(work: int) -> int:
    """Threads worth using for `work` multiply-adds: PyTorch's setting, or one if waking more costs more.

    One in a forked process: the threads of an OpenMP runtime do not live on there, and waiting for them would
    never end. Processes that need more are to be spawned.
    """
    return 1 if work < SERIAL_WORK or _forked else torch.get_num_threads()


_forked = False


def _note_fork() -> None:
    global _forked  # noqa: PLW0603  (it is a fact about the process)
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


SERIAL_WORK = 300_000
"""About five microseconds of one core; below, a parallel region, which takes up to three, costs more than it saves."""
