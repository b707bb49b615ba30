"""MNIST (handwritten digits) and Fashion-MNIST (clothing): 28 x 28 grey images in the IDX format.

Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, 1998.
H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, arXiv 1708.07747.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from openwork.tasks.sources import Source, read
from openwork.tasks.task import Split, Task, cut, standardized

VALIDATION = 5000
"""Examples cut from the official 60 000 of training."""

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

_CHECKSUMS: Mapping[str, Mapping[str, str]] = {
    _MNIST: {
        "train-images-idx3": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    _FASHION: {
        "train-images-idx3": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}

_CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def mnist(*, download: bool = False) -> Task:
    """Handwritten digits, ``[n, 1, 28, 28]``, in ten classes; 55 000 / 5 000 / 10 000 examples.

    Raises:
        MissingData: the files are not on this machine and ``download`` is False.
    """
    return _task("mnist", _MNIST, tuple("0123456789"), download)


def fashion_mnist(*, download: bool = False) -> Task:
    """Pictures of clothing, ``[n, 1, 28, 28]``, in ten classes; 55 000 / 5 000 / 10 000 examples.

    Raises:
        MissingData: the files are not on this machine and ``download`` is False.
    """
    return _task("fashion_mnist", _FASHION, _CLOTHES, download)


def _task(name: str, url: str, classes: tuple[str, ...], download: bool) -> Task:
    def array(part: str) -> Tensor:
        source = Source(f"{name}/{part}-ubyte.gz", f"{url}/{part}-ubyte.gz", _CHECKSUMS[url][part])
        return idx(read(source, download=download))

    official = Split(array("train-images-idx3").unsqueeze(1), array("train-labels-idx1").long())
    train, validation = cut(official, VALIDATION)
    test = Split(array("t10k-images-idx3").unsqueeze(1), array("t10k-labels-idx1").long())
    x, x_validation, x_test = standardized(train.inputs, validation.inputs, test.inputs)
    return Task(
        name=name,
        kind="classification",
        train=Split(x, train.targets),
        validation=Split(x_validation, validation.targets),
        test=Split(x_test, test.targets),
        classes=classes,
    )


def idx(content: bytes) -> Tensor:
    """Decode an IDX file of unsigned bytes: two zero bytes, type 8, number of axes, big-endian sizes, data.

    Raises:
        ValueError: it is something else, or its length is not what its sizes say.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"an IDX file of unsigned bytes begins with 00 00 08; this one with {content[:3].hex(' ')}"
        )
    begin = 4 + 4 * content[3]
    if len(content) < begin:
        raise ValueError(
            f"an IDX file of {content[3]} axes has {begin} bytes before its data; found {len(content)}"
        )
    shape = struct.unpack(f">{content[3]}I", content[4:begin])
    if len(content) - begin != math.prod(shape):
        raise ValueError(
            f"an IDX file of shape {list(shape)} holds as many bytes of data; found {len(content) - begin}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy())
