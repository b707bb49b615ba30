"""Two processes of ``torchrun``, interrupted and begun again, for every method that moves connections of stored layers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.resumed_by_torchrun import METHODS


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed_with_the_same_bits():
    script = Path(__file__).with_name("resumed_by_torchrun.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [method.name for method in METHODS]
