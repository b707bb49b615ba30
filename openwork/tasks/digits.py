"""Handwritten digits, 8 x 8 pixels: 1797 examples that come with scikit-learn, so nothing is downloaded.

E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI), 1998.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from openwork.tasks.sources import verified
from openwork.tasks.task import Split, Task, cut, standardized

TEST, VALIDATION = 450, 270
"""There is no official split. A quarter is for testing; 1077 examples remain for training."""

_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def digits() -> Task:
    """The task: images ``[n, 1, 8, 8]``, mean 0 and deviation 1, in ten classes; 1077 / 270 / 450 examples.

    Raises:
        ImportError: scikit-learn is not installed.
        WrongData: its file is another one.
    """
    table = np.loadtxt(_content().decode("ascii").splitlines(), delimiter=",", dtype=np.int64)
    images = torch.from_numpy(table[:, :-1]).view(-1, 1, 8, 8)
    rest, test = cut(Split(images, torch.from_numpy(table[:, -1].copy())), TEST, seed=0)
    train, validation = cut(rest, VALIDATION, seed=1)
    x, x_validation, x_test = standardized(train.inputs, validation.inputs, test.inputs)
    return Task(
        name="digits",
        kind="classification",
        train=Split(x, train.targets),
        validation=Split(x_validation, validation.targets),
        test=Split(x_test, test.targets),
        classes=tuple("0123456789"),
    )


def _content() -> bytes:
    # The file is read where scikit-learn lies, without importing it: that takes seconds and brings a second
    # OpenMP runtime into the process, whose threads fight with those of torch for the cores.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: pip install 'openwork[sklearn]'"
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return verified(gzip.decompress(path.read_bytes()), _SHA256, str(path))
