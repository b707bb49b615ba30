"""Puts a trained model through a recipe of calibrated stages, block by block.

- :mod:`.contract`: what a stage is given and gives back;
- :mod:`.walk`: the walk over the blocks;
- :mod:`.batches`, :mod:`.wiring`, :mod:`.stream`: the data, how a model calls its blocks, and what flows between them;
- :mod:`.collection`: what the layers of a block read, summed up;
- :mod:`.planning`, :mod:`.undo`, :mod:`.report`: what will be done, how to put it back, and what was done.
"""

from openwork.calibrator.contract import (
    Block,
    BlockCalibrated,
    Calibrated,
    Layer,
    ModelCalibrated,
    Solution,
    Stage,
)
from openwork.calibrator.report import Calibration, Line
from openwork.calibrator.walk import calibrate_

__all__ = [
    "Block",
    "BlockCalibrated",
    "Calibrated",
    "Calibration",
    "Layer",
    "Line",
    "ModelCalibrated",
    "Solution",
    "Stage",
    "calibrate_",
]
