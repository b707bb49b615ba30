"""Puts a trained model through a recipe of calibrated stages, block by block.

- :mod:`.contract`: what a stage answers; :mod:`.layer`: what it is given, and gives back;
- :mod:`.walk`: the walk over the blocks;
- :mod:`.batches`, :mod:`.wiring`, :mod:`.stream`: the data, how a model calls its blocks, and what flows between them;
- :mod:`.collection`, :mod:`.measuring`: what the layers of a block read, summed up, and what allocations make of it;
- :mod:`.planning`, :mod:`.undo`, :mod:`.report`: what will be done, how to put it back, and what was done.
"""

from openwork.calibrator.contract import Block, BlockCalibrated, Calibrated, ModelCalibrated, Stage
from openwork.calibrator.layer import Layer, Solution
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
