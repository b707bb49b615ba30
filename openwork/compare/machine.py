"""What machine is this? A number of seconds means nothing without the answer."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import openwork
from openwork.kernels import isa


@dataclass(frozen=True)
class Machine:
    """Where something was measured, as it is written into every file of results.

    Attributes:
        cpu: name the processor gives itself.
        architecture: such as ``x86_64``.
        isa: instruction set level the kernels use here, see :func:`openwork.kernels.isa`.
        cores: logical processors this process may run on.
        threads: that torch and our kernels use.
        memory: bytes, of the whole machine; 0 if it is not told.
        system: operating system and its version.
        python: version.
        torch: version.
        numpy: version.
        openwork: version.
    """

    cpu: str
    architecture: str
    isa: str
    cores: int
    threads: int
    memory: int
    system: str
    python: str
    torch: str
    numpy: str
    openwork: str

    def __str__(self) -> str:
        return (
            f"{self.cpu} ({self.isa}), {self.threads} threads on {self.cores} cores; "
            f"openwork {self.openwork}, torch {self.torch}, Python {self.python}, {self.system}"
        )


def machine() -> Machine:
    """The machine this process runs on, with its present number of threads."""
    return Machine(
        cpu=_cpu(),
        architecture=platform.machine(),
        isa=isa(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory=_memory(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        openwork=openwork.__version__,
    )


def _cpu() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = described.read_text().split("\n\n")[0].splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = told.get("model name") or told.get("Model") or ""
        numbers = [f"{key} {told[key]}" for key in ("cpu family", "model", "stepping") if key in told]
        if name:  # virtual machines shorten the name: the numbers still tell which one it is
            return f"{name} [{', '.join(numbers)}]" if numbers else name
    return platform.processor() or "unknown"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
