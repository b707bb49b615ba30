"""CIFAR-10: 32 x 32 colour photographs in ten classes, from the official binary version.

A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from openwork.tasks.sources import Source, find, read, verified
from openwork.tasks.task import Split, Task, cut, standardized

VALIDATION = 5000
"""Examples cut from the official 50 000 of training."""

ARCHIVE = Source(
    "cifar10/cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_FOLDER = "cifar-10-batches-bin"
_CHECKSUMS: Mapping[str, str] = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32


def cifar10(*, download: bool = False) -> Task:
    """Photographs ``[n, 3, 32, 32]`` in ten classes; 45 000 / 5 000 / 10 000 examples.

    Reads ``cifar10/cifar-10-batches-bin/*.bin``, or the archive ``cifar10/cifar-10-binary.tar.gz`` as it is.

    Raises:
        MissingData: neither is on this machine and ``download`` is False.
    """
    *batches, test_batch = (batch(content) for content in _batches(download))
    official = Split(torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches]))
    train, validation = cut(official, VALIDATION)
    x, x_validation, x_test = standardized(train.inputs, validation.inputs, test_batch.inputs)
    return Task(
        name="cifar10",
        kind="classification",
        train=Split(x, train.targets),
        validation=Split(x_validation, validation.targets),
        test=Split(x_test, test_batch.targets),
        classes=_CLASSES,
    )


def batch(content: bytes) -> Split:
    """Decode records of one label byte, then 1024 red, 1024 green and 1024 blue bytes, row by row."""
    if not content or len(content) % _RECORD:
        raise ValueError(f"a CIFAR-10 batch is a multiple of {_RECORD} bytes; found {len(content)}")
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, _RECORD).copy())
    return Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long())


def shifted_and_flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """The usual augmentation: pad by 4, cut 32 x 32 at a random place, mirror half of the images.

    Args:
        images: ``[n, channels, height, width]``; not changed.
        generator: the only source of randomness.
    """
    n, _, height, width = images.shape
    flip = torch.rand(n, 1, generator=generator) < 0.5
    rows = torch.arange(height) + torch.randint(9, (n, 1), generator=generator)
    columns = torch.arange(width) + torch.randint(9, (n, 1), generator=generator)
    columns = torch.where(flip, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _batches(download: bool) -> list[bytes]:
    extracted = [find(f"cifar10/{_FOLDER}/{name}") for name in _CHECKSUMS]
    if all(extracted):
        pairs = zip(extracted, _CHECKSUMS.values(), strict=True)
        return [verified(path.read_bytes(), sha256, str(path)) for path, sha256 in pairs if path is not None]
    with tarfile.open(fileobj=io.BytesIO(read(ARCHIVE, download=download)), mode="r:gz") as archive:
        return [_member(archive, name) for name in _CHECKSUMS]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    opened = archive.extractfile(f"{_FOLDER}/{name}")
    if opened is None:
        raise ValueError(f"{ARCHIVE.path}: {_FOLDER}/{name} is no file")
    return opened.read()
