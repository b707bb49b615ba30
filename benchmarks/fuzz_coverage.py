"""Bytes invented by a fuzzer that watches which lines they reach, read as files of `openwork.save`.

Beside the changes that know the structure of a file (`fuzz_files.py`), atheris mutates whole files and keeps what reaches new
lines of the readers. A header is believed only with its digest, so half of the inputs are given one that fits: otherwise nothing
behind the digest would ever be reached. Anything but a `FileError` or a sound read is a fault, and ends the run.

    pip install atheris
    python benchmarks/fuzz_coverage.py [-runs=100000] [-max_total_time=120]     (options of libFuzzer)
"""

import hashlib
import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["openwork.files", "openwork.layouts.stored", "openwork.layouts.csr"]
):
    import openwork.files
    from openwork.files import FileError, inspect, load, load_masks

from hostile.sparse_files import LIMIT, corpus

FOLDER = Path(tempfile.mkdtemp())
TARGET = FOLDER / "changed"


def with_digest(data: bytes) -> bytes:
    """The same file with the digest that its header asks for, where there is a header."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        table = json.loads(data[8 : 8 + length])
        told = table["__metadata__"]
        told["openwork_sha256"] = hashlib.sha256(told["openwork"].encode()).hexdigest()
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def one_input(data: bytes) -> None:
    """Read bytes in every way that needs no model."""
    TARGET.write_bytes(with_digest(data[1:]) if data[:1] > b"\x7f" else data[1:])
    for read in (
        lambda: inspect(TARGET),
        lambda: load(TARGET, limit_bytes=LIMIT),
        lambda: load_masks(TARGET, limit_bytes=LIMIT),
    ):
        try:
            read()
        except FileError as error:
            if str(TARGET) not in str(error):
                raise RuntimeError("a refusal that does not name the file") from error


def main() -> None:
    """Start from sound files."""
    seeds = FOLDER / "seeds"
    seeds.mkdir()
    for number, (path, _, _) in enumerate(corpus(FOLDER)):
        for lead in (b"\x00", b"\xff"):
            (seeds / f"{number}-{lead.hex()}").write_bytes(lead + path.read_bytes())
    print(f"openwork {openwork.__version__}, seeds in {seeds}", flush=True)
    atheris.Setup([*sys.argv, "-max_len=8192", "-rss_limit_mb=2048", str(seeds)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
