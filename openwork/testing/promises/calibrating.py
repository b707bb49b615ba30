"""The promise about calibrations: interrupted after any block and continued is the same as never interrupted."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from openwork.calibrator import BlockCalibrated, Calibrated
from openwork.pruner import sparsify_
from openwork.testing.bits import require_same, snapshot
from openwork.testing.networks import batches, residual
from openwork.testing.registry import promise, require
from openwork.testing.trial import Trial, plant_zeros


@promise(about="connections")
def calibrating_resumes_after_any_block(trial: Trial) -> None:
    """A calibration that was killed after any of its blocks, and called again, ends with the bits and masks of one that was
    never interrupted.
    """
    method = trial.method()
    if not isinstance(method, (Calibrated, BlockCalibrated)):
        return
    data = batches(2)
    with TemporaryDirectory() as folder:
        straight = residual()
        plant_zeros(straight, method)
        expected = sparsify_(straight, method, data=data, checkpoint=folder)
        files = sorted(Path(folder).glob("block-*.pt"))
        require(len(files) == 3, f"{len(files)} of 3 blocks were saved")
        for done in range(len(files) - 1, -1, -1):
            for file in files[done:]:
                file.unlink(missing_ok=True)
            model = residual()
            plant_zeros(model, method)
            found = sparsify_(model, method, data=data, checkpoint=folder)
            where = f"when interrupted after {done} blocks"
            require_same(snapshot(straight), snapshot(model), where)
            require_same(expected.masks, found.masks, f"of the masks {where}")
