"""Damaged and hostile input: each is refused with an error that names what is wrong, or is what it says.

    python benchmarks/fuzz_files.py --inputs 100000
    python benchmarks/fuzz_files.py --only Checkpoints:1234       one input again, with its traceback

Sound inputs of every kind that openwork reads (``benchmarks/hostile``, a page a kind) are changed in ways a disk, a mistaken
writer and an enemy would: bits and bytes anywhere, the ends cut off, entries of headers, records and indices edited with and
without new checksums, shapes that are huge, empty or lies, dtypes that are lies, NaN, archives that unfold to much more than they
are, calls of functions where there should be numbers. What loads is computed with, so an index that was believed wrongly would be
followed out of bounds.

Inputs are tried in parts, each in a process of its own, which may take no more than ``MEMORY`` beyond what it has when it begins
and no more than ``PATIENCE`` for one input. What is done is written down, so a run that is interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hostile.archives import Calibrations, Checkpoints
from hostile.data import Data
from hostile.deltas import Deltas
from hostile.folders import Folders
from hostile.reader import Reader
from hostile.sparse_files import SparseFiles
from hostile.states import Layers, Sparsifiers
from hostile.texts import Texts

import openwork
from openwork.compare.machine import machine
from openwork.durable import replacing

READERS: dict[type[Reader], int] = {
    SparseFiles: 61,
    Deltas: 1,
    Layers: 12,
    Texts: 12,
    Sparsifiers: 5,
    Data: 4,
    Checkpoints: 3,
    Calibrations: 1,
    Folders: 1,
}
"""The readers, and how many of a hundred inputs each gets."""

MEMORY = 512 << 20
PATIENCE = 20
"""Seconds for one input."""

PART = 2500
SHOWN = 20
"""Faults that are described, of each part."""


def name(reader: type[Reader]) -> str:
    """How a reader is called on the command line and in the result."""
    return reader.__name__


def attempt(reader: Reader, seed: int, number: int) -> tuple[str, str, str | None]:
    """Try one input; returns what was done, how it ended, and what is wrong with that, if anything is."""
    chance = random.Random(f"{seed} {number}")
    kind, words = reader.change(chance)
    signal.alarm(PATIENCE)
    try:
        reader.read(chance)
    except reader.refusals as error:
        missing = [word for word in words if word not in str(error)]
        return kind, "refused", f"the refusal does not say {missing[0]!r}: {error!r}" if missing else None
    except BaseException:
        return kind, "fault", traceback.format_exc(limit=-4)
    finally:
        signal.alarm(0)
    return kind, "is what it says", None


def fuzz(reader: type[Reader], seed: int, first: int, count: int) -> dict[str, Any]:
    """Try some inputs of a kind; returns how many ended in which way, and the faults."""
    faulthandler.enable()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_long)
    outcomes, kinds, faults = Counter[str](), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        made = reader(Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, unlimited[1]))
        for number in range(first, first + count):
            kind, outcome, wrong = attempt(made, seed, number)
            outcomes[outcome if wrong is None else "fault"] += 1
            kinds[kind] += 1
            if wrong is not None and len(faults) < SHOWN:
                faults.append({"number": number, "kind": kind, "told": wrong})
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"outcomes": outcomes, "kinds": kinds, "faults": faults, "peak_mib": peak}


def too_long(*_: object) -> None:
    raise TimeoutError(f"one input takes more than {PATIENCE} s")


def parts(inputs: int) -> list[tuple[str, int, int]]:
    """Reader, first input and number of inputs of each part; the readers take turns."""
    whole = sum(READERS.values())
    shares = {name(reader): max(1, inputs * share // whole) for reader, share in READERS.items()}
    found = [
        (reader, first, min(PART, count - first))
        for reader, count in shares.items()
        for first in range(0, count, PART)
    ]
    return sorted(found, key=lambda part: part[1])


def apart(reader: type[Reader], seed: int, first: int, count: int) -> dict[str, Any]:
    """A part in a process of its own, forked from this one that has computed nothing; one that dies is a fault."""
    with tempfile.TemporaryDirectory() as folder:
        answer, said = Path(folder, "answer"), Path(folder, "said")
        child = os.fork()
        if not child:
            status = 1
            try:
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
                answer.write_text(json.dumps(fuzz(reader, seed, first, count)))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            told = f"the process ended with {code}: {said.read_text()[-2000:]}"
            faults = [{"number": first, "kind": "", "told": told}]
            return {"outcomes": {"fault": 1}, "kinds": {}, "peak_mib": 0, "faults": faults}
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def report(seed: int, asked: int, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything that was tried, by reader."""
    readers: dict[str, dict[str, Any]] = {}
    for key, part in found.items():
        sum_ = readers.setdefault(
            key.split()[0],
            {"inputs": 0, "outcomes": Counter(), "changes": Counter(), "peak_mib": 0, "faults": []},
        )
        sum_["inputs"] += sum(part["outcomes"].values())
        sum_["outcomes"] += Counter(part["outcomes"])
        sum_["changes"] += Counter(part["kinds"])
        sum_["peak_mib"] = max(sum_["peak_mib"], part["peak_mib"])
        sum_["faults"] += part["faults"]
    return {
        "command": "python benchmarks/fuzz_files.py " + " ".join(sys.argv[1:]),
        "openwork": openwork.__version__,
        "torch": torch.__version__,
        "machine": asdict(machine()),
        "seed": seed,
        "asked": asked,
        "inputs": sum(reader["inputs"] for reader in readers.values()),
        "faults": sum(reader["outcomes"]["fault"] for reader in readers.values()),
        "seconds": round(sum(part["seconds"] for part in found.values())),
        "memory_allowed_mib": MEMORY >> 20,
        "readers": readers,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="where to write the result; parts that it has are not tried again"
    )
    parser.add_argument("--only", help="one input, such as Checkpoints:1234")
    parser.add_argument("--together", action="store_true", help="one process for all, where there are few")
    asked = parser.parse_args()
    by_name = {name(reader): reader for reader in READERS}
    if asked.only:
        reader, _, number = asked.only.partition(":")
        print(json.dumps(fuzz(by_name[reader], asked.seed, int(number), 1)["faults"], indent=2))
        return 0
    kept = asked.out and asked.out.with_suffix(".parts.json")
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for reader, first, count in parts(asked.inputs):
        key = f"{reader} {asked.seed} {first} {count}"
        if key in found:
            continue
        began = time.monotonic()
        found[key] = (fuzz if asked.together else apart)(by_name[reader], asked.seed, first, count)
        found[key]["seconds"] = time.monotonic() - began
        print(
            f"{key}: {found[key]['seconds']:.0f} s, {dict(found[key]['outcomes'])}",
            file=sys.stderr,
            flush=True,
        )
        if kept:
            write(kept, found)
            write(asked.out, report(asked.seed, asked.inputs, found))
    result = report(asked.seed, asked.inputs, found)
    if kept:
        write(asked.out, result)
        kept.unlink(missing_ok=True)
    for reader, part in result["readers"].items():
        print(f"{part['inputs']:>8}  {reader}: {dict(part['outcomes'])}, peak memory {part['peak_mib']} MiB")
        for fault in part["faults"]:
            print(f"{reader}:{fault['number']} ({fault['kind']})\n{fault['told']}")
    return 1 if result["faults"] else 0


def write(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
    with replacing(path, len(text)) as partial:
        partial.write_bytes(text)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
