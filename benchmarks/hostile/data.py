"""Data sets: their formats, and official files that are not the official ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import struct
import tarfile
from pathlib import Path

from hostile.changes import damage
from hostile.reader import Reader
from openwork.tasks import cifar10, mnist, sources

SIZES = [0, 1, 2, 28, 255, 2**16, 2**31, 2**32 - 1]


class Data(Reader):
    """An official file that was changed in any way is refused with its path; a decoder takes what has the size that it says."""

    refusals = (ValueError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.environ["OPENWORK_DATA"] = str(folder)
        (folder / "set").mkdir()
        g = random.Random(0)
        self.images = b"\0\0\x08\3" + struct.pack(">3I", 3, 28, 28) + g.randbytes(3 * 28 * 28)
        self.records = g.randbytes(2 * 3073)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            member.size = len(self.records)
            tar.addfile(member, io.BytesIO(self.records))
        self.packed = {"set/images.gz": gzip.compress(self.images), "set/records.tar.gz": archive.getvalue()}
        self.bomb = gzip.compress(bytes(2**30), 1)

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        kind = chance.choice(["idx", "idx header", "cifar", "official", "official", "bomb"])
        self.kind, words = kind, []
        if kind == "idx":
            kind, self.content = damage(self.images, chance)
            words = ["IDX"]
        elif kind == "idx header":
            axes = chance.choice([0, 1, 2, 3, 4, 31, 32, 33, 64, 65, 255])
            header = struct.pack(f">{axes}I", *chance.choices(SIZES, k=axes))
            self.content = b"\0\0\x08" + bytes([axes]) + header + self.images[16:]
            words = ["IDX"]
        elif kind == "cifar":
            kind, self.content = damage(self.records, chance)
            words = ["CIFAR-10"]
        else:
            path = chance.choice(list(self.packed))
            whole = self.packed[path]
            official = self.images if path == "set/images.gz" else whole
            self.source = sources.Source(
                path, "https://nowhere.invalid", hashlib.sha256(official).hexdigest()
            )
            changed = self.bomb if kind == "bomb" and chance.random() < 0.05 else damage(whole, chance)[1]
            (self.folder / path).write_bytes(changed)
            words = [str(self.folder / path)]
        return f"{self.kind}: {kind}", words

    def read(self, chance: random.Random) -> None:
        if self.kind.startswith("idx"):
            mnist.idx(self.content)
        elif self.kind == "cifar":
            cifar10.batch(self.content)
        else:
            content = sources.read(self.source)
            assert hashlib.sha256(content).hexdigest() == self.source.sha256
