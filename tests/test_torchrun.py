"""Two processes of ``torchrun``, interrupted and begun again, for every training method, masked and stored."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.resumed_by_torchrun import CELLS, TRAINING

SCRIPT = Path(__file__).with_name("resumed_by_torchrun.py")
SOME = ["rigl-stored", "deep_r-stored", "deep_r-masked", "gmp-masked", "top_kast-masked", "gmp-stored"]
STORED = {
    "cht", "deep_r", "dst_ee", "gse", "itop", "keep_zeros", "mest", "quickselection", "rigl", "set", "static_random",
}  # fmt: skip
"""The methods that work on stored layers and keep the number of connections of each at all times."""


def outcomes(*cells):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            SCRIPT,
            *cells,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "cells", [SOME, pytest.param(CELLS, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=len
)
def test_a_run_of_two_processes_is_resumed_with_the_same_bits(cells):
    found = outcomes(*cells)
    assert [*found] == cells
    for cell, outcome in found.items():
        name, _, storage = cell.partition("-")
        if storage == "masked" or name in STORED:
            assert outcome == "same bits", cell
        else:
            assert re.search("hold only their kept|holds only its kept|masked linear layers", outcome), (
                outcome
            )


def test_every_method_is_tried():
    assert {cell.partition("-")[0] for cell in CELLS} == set(TRAINING) > STORED
