"""Every example runs from a clean folder."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
ALONE = sorted(path for path in FOLDER.glob("*.py") if path.stem != "data_parallel")


def test_the_data_parallel_example_runs_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*command, str(FOLDER / "data_parallel.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENWORK_CACHE", str(tmp_path / "cache"))
    runpy.run_path(str(path), run_name="__main__")
