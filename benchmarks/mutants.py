"""Do the tests notice? Breaks the package in one place at a time, in a copy, and runs the tests meant to see it.

    python benchmarks/mutants.py [words that the description of a mutant must contain] [--out FILE]

With ``--out`` each outcome is written down at once, and mutants that the file knows are not tried again.

A mutant is killed when its tests fail. One that survives shows a promise that nothing checks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATIENCE = 900
"""Seconds for the tests of a mutant, on a busy machine; one that makes them endless is killed as well."""

ONLY_THE_COPY = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
"""
"""Run at the start of every process that has the copy on its path: an editable installation comes before any path."""


class Mutant(NamedTuple):
    """One fault: in ``page`` of the package, ``sound`` becomes ``broken``; ``tests`` should fail."""

    page: str
    sound: str
    broken: str
    tests: str


CSR, BITMASK, TOPOLOGY = (
    "tests/layouts/test_csr.py",
    "tests/layouts/test_bitmask.py",
    "tests/kernels/test_topology.py",
)
FILES, FUZZ, CHECKPOINT, TRUST = (
    "tests/test_files.py",
    "tests/test_fuzz.py",
    "tests/test_checkpoint.py",
    "tests/test_trust.py",
)
SIBLINGS = "tests/layouts/test_siblings.py"
SPARSIFIER, POSITIONS = "tests/test_sparsifier.py", "tests/test_positions.py"

MUTANTS = [
    Mutant("layouts/csr.py", "(self.col >= columns)", "(self.col > columns)", CSR),
    Mutant(
        "layouts/csr.py",
        "unsorted = self.col[1:] <= self.col[:-1]",
        "unsorted = self.col[1:] < self.col[:-1]",
        CSR,
    ),
    Mutant(
        "layouts/csr.py", "falling = self.crow[1:] < self.crow[:-1]", "falling = self.crow.diff() < 0", CSR
    ),
    Mutant("layouts/csr.py", "int(self.crow[-1]) != self.kept", "False", CSR),
    Mutant(
        "layouts/csr.py", "int(positions[-1]) >= rows * columns", "int(positions[-1]) > rows * columns", CSR
    ),
    Mutant("kernels/topology.py", "high >= columns", "high > columns", TOPOLOGY),
    Mutant("layouts/siblings.py", "x.is_contiguous() and same_bits(kept.x, x)", "True", SIBLINGS),
    Mutant("layouts/siblings.py", "kept.parts[index] = None", "pass", SIBLINGS),
    Mutant("layouts/siblings.py", "self._has_bias(index, bias) and x", "x", SIBLINGS),
    Mutant("pack/lines.py", "module.training or is_watched(module)", "False", "tests/pack/test_lines.py"),
    Mutant("pack/lines.py", "self.module.get_submodule(name) is step", "True", "tests/pack/test_lines.py"),
    Mutant(
        "kernels/topology.py", "ascending = col[1:] > col[:-1]", "ascending = col[1:] >= col[:-1]", TOPOLOGY
    ),
    Mutant("kernels/topology.py", "if (first, last) != (0, kept):", "if first != 0:", TOPOLOGY),
    Mutant("layouts/bitmask.py", "if bool(mask[:, columns:].any()):", "if False:", BITMASK),
    Mutant(
        "layouts/stored.py",
        "bits = bits & ((1 << (8 * weight.itemsize - 1)) - 1)",
        "pass",
        f"{FILES} -k fifth",
    ),
    Mutant(
        "layouts/stored.py",
        'layout = "bitmask"  # a kept',
        'layout = "dense"  # a kept',
        f"{FILES} -k kept_zeros",
    ),
    Mutant(
        "layouts/fitting.py",
        "if values.shape != col.shape:",
        "if False:",
        "tests/layouts/test_linear.py -k state",
    ),
    Mutant(
        "files/header.py",
        "if _text_digest(text) != metadata.get(DIGEST_KEY):",
        "if False:",
        f"{FILES} -k flipped",
    ),
    Mutant("files/header.py", "largest >= 2**62", "total >= 2**62", f"{FUZZ} -k rows_without"),
    Mutant(
        "files/reading.py",
        "if array_digest(found[suffix]) !=",
        "if None is not None and '' !=",
        f"{FILES} -k wrong_hashes",
    ),
    Mutant(
        "files/reading.py",
        "for key in [*container.arrays, *header.sha256]:",
        "for key in []:",
        f"{FILES} -k signed",
    ),
    Mutant(
        "files/reading.py",
        "0 if entry.kept is None else 4 * (entry.shape[0] + 1)",
        "0",
        f"{FUZZ} -k rows_without",
    ),
    Mutant("files/reading.py", "check_fit(into, header, container.where)", "pass", f"{FILES} -k fit"),
    Mutant("files/filling.py", "if DTYPES[stored.dtype] != dtype:", "if False:", f"{FILES} -k fit"),
    Mutant("files/filling.py", "if not torch.equal(*bits):", "if False:", f"{FILES} -k fit"),
    Mutant(
        "durable.py",
        '.with_name(f".openwork-{secrets.token_hex(8)}.tmp")',
        ".with_name(path.name)",
        f"{FILES} -k leaves",
    ),
    Mutant(
        "archives.py",
        "weights_only=True, mmap",
        "weights_only=False, mmap",
        "tests/test_archives.py -k let_in",
    ),
    Mutant("files/checkpoint.py", "one.load_state_dict(state)", "pass", f"{CHECKPOINT} -k several"),
    Mutant("files/checkpoint.py", "_keep_precision(one, state)", "pass", f"{CHECKPOINT} -k nadam"),
    Mutant(
        "archives.py", "if (damaged := archive.testzip()) is not None:", "if False:", "tests/test_archives.py"
    ),
    Mutant("archives.py", "if nbytes > limit:", "if False:", "tests/test_archives.py -k few_bytes"),
    Mutant(
        "connections/rewiring.py",
        "(self.origin >= 0) & goes_on[self.origin.clamp(min=0)]",
        "self.origin >= 0",
        "tests/train/test_deep_r.py -k anew",
    ),
    Mutant(
        "sparsifier/sparsifier.py",
        'self.generator.set_state(state["generator"])',
        "pass",
        f"{CHECKPOINT} -k set-masked",
    ),
    Mutant(
        "sparsifier/resuming.py",
        "if not bool((positions[1:] > positions[:-1]).all()):",
        "if False:",
        f"{FUZZ} -k sparsifier",
    ),
    Mutant(
        "sparsifier/sparsifier.py", "self._require_agreement(f", "str(f", "tests/test_processes.py -k errors"
    ),
    Mutant(
        "connections/masked.py",
        "self._held(holder[key]).masked_fill_(self.inactive, 0)",
        "pass",
        f"{SPARSIFIER} -k zeros_stay",
    ),
    Mutant(
        "connections/contract.py",
        "origins(self.positions, positions)",
        "origins(positions, positions)",
        "tests/connections/test_contract.py -k stays_keeps",
    ),
    Mutant(
        "connections/stored.py",
        "holder[key] = carried(holder[key], rewiring.origin)",
        "pass",
        f"{SPARSIFIER} -k agree",
    ),
    Mutant("positions.py", "positions[index] == wanted", "positions[index] >= wanted", POSITIONS),
    Mutant("grid.py", "above = scores > threshold", "above = scores >= threshold", "tests/test_grid.py"),
    Mutant("grid.py", "torch.where(scores.isnan(), -math.inf, scores)", "scores", "tests/test_grid.py"),
    Mutant(
        "allocation/counts.py",
        "step = 1 if missing > 0 else -1",
        "step = 1",
        "tests/allocation/test_counts.py",
    ),
    Mutant(
        "schedules.py",
        "if not self.first <= step <= self.last:",
        "if not self.first <= step < self.last:",
        "tests/test_schedules.py",
    ),
    Mutant(
        "positions.py",
        "below(free_before, ranks, or_at=True)",
        "below(free_before, ranks)",
        "tests/kernels/test_teams.py -k by_rank",
    ),
    Mutant("kernels/native.py", "if asked not in available:", "if False:", "tests/kernels/test_native.py"),
    Mutant("kernels/native.py", "    _forked = True", "    _forked = False", f"{TRUST} -k fork"),
]


def killed(mutant: Mutant, copy: Path) -> bool:
    """Break the copy, run the tests, mend it."""
    page = copy / "openwork" / mutant.page
    text = page.read_text()
    if text.count(mutant.sound) < 1:
        raise SystemExit(f"{mutant.page} has no {mutant.sound!r} any more: write this mutant anew")
    page.write_text(text.replace(mutant.sound, mutant.broken, 1))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-o",
        f"timeout={PATIENCE}",
        *mutant.tests.split(maxsplit=2),
    ]
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        page.write_text(text)
    if done.returncode > 1:
        raise SystemExit(f"{mutant.tests} could not be run:\n{done.stdout.decode()[-2000:]}")
    return done.returncode != 0  # less than 0: the system ended it, as when it wants all memory


def main(words: list[str], out: Path | None) -> int:
    chosen = [m for m in MUTANTS if all(word in " ".join(m) for word in words)]
    known: dict[str, bool] = json.loads(out.read_text())["killed"] if out and out.exists() else {}
    found: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("openwork", "tests", "benchmarks", "examples"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        native = find_spec("openwork.kernels._native")
        if native is not None and native.origin is not None:
            shutil.copy(native.origin, copy / "openwork" / "kernels")
        (copy / "sitecustomize.py").write_text(ONLY_THE_COPY)
        for mutant in chosen:
            name = f"{mutant.page}: {mutant.sound} -> {mutant.broken}"
            found[name] = known[name] if name in known else killed(mutant, copy)
            print(f"{'killed' if found[name] else 'SURVIVED':<9} {name}", flush=True)
            if out:
                out.write_text(json.dumps(report(known | found), indent=2, ensure_ascii=False) + "\n")
    print(f"{sum(found.values())} of {len(chosen)} mutants killed", file=sys.stderr)
    return 0 if all(found.values()) else 1


def report(found: dict[str, bool]) -> dict[str, object]:
    return {
        "command": "python benchmarks/mutants.py",
        "openwork": version("openwork"),
        "machine": platform.platform(),
        "mutants": len(found),
        "dead": sum(found.values()),
        "survivors": [name for name, dead in found.items() if not dead],
        "killed": found,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    sys.exit(main(asked.words, asked.out))
