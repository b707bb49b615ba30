"""Archives of ``torch.save``: checkpoints of training, and of a calibration."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import openwork as ow
from hostile.changes import damage, edit_tensor, edit_tree
from hostile.reader import Reader
from hostile.states import strange
from openwork import archives
from openwork.calibrator.checkpoint import PARTS
from openwork.files import FileError
from openwork.tasks import sources


class Call:
    """Pickled as the call of a function: what a reader that believes its file would carry out."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


def parts(whole: bytes) -> dict[str, bytes]:
    """The files in an archive."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with checksums that fit."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def saved(content: object) -> bytes:
    made = io.BytesIO()
    torch.save(content, made)
    return made.getvalue()


def edited(content: Any, chance: random.Random) -> Any:
    """The content with one tensor, number or mapping in the place of another."""
    tensors: list[torch.Tensor] = []

    def gather(found: object) -> None:
        if isinstance(found, torch.Tensor):
            tensors.append(found)
        for inner in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
            gather(inner)

    gather(content)
    return edit_tree(
        content,
        chance,
        lambda chance: (
            edit_tensor(chance.choice(tensors), chance) if chance.random() < 0.6 else strange(chance)
        ),
    )


class Archives(Reader):
    """What checkpoints of both kinds have in common."""

    refusals = (FileError,)
    sound: list[bytes]
    target: Path

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        self.which = chance.randrange(len(self.sound))
        whole, canary = self.sound[self.which], self.folder / "canary"
        kind = chance.choice(
            ["bytes", "bytes", "part", "compressed", "lost", "edited", "edited", "edited", "call", "nested"]
        )
        if kind == "bytes":
            kind, whole = damage(whole, chance)
        elif kind in ("part", "compressed", "lost"):
            files = parts(whole)
            name = chance.choice([name for name, content in files.items() if content])
            if kind == "part":
                files[name] = damage(files[name], chance)[1]
            elif kind == "lost":
                del files[name]
            else:
                files[name] = bytes(chance.choice([1, 2**20, 2**26]))
            whole = packed(files, zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED)
        elif kind == "nested":
            many: list[Any] = []
            for _ in range(chance.choice([3, 40])):
                many = [many, many]
            whole = saved(self.content() | {"extra": many})
        else:
            calls = [
                Call(os.system, f"touch {canary}"),
                Call(sources.write, canary, b"x"),
                Call(ow.save, nn.Linear(1, 1), str(canary)),
                Call(__import__, "antigravity"),
            ]
            content = self.content()
            whole = saved(
                edited(content, chance)
                if kind == "edited"
                else {**content, chance.choice(list(content)): chance.choice(calls)}
            )
        self.target.write_bytes(whole)
        return kind, [str(self.target)]

    def content(self) -> dict[str, Any]:
        """What a sound archive holds."""
        path = self.folder / "sound"
        path.write_bytes(self.sound[self.which])
        content: dict[str, Any] = archives.read(path, PARTS)
        return content

    def read(self, chance: random.Random) -> None:
        try:
            self.load(chance)
        finally:
            assert not (self.folder / "canary").exists(), "a file has run something"

    def load(self, chance: random.Random) -> None:
        raise NotImplementedError


class Checkpoints(Archives):
    """Runs in training, masked and stored; the model computes afterwards, whatever it was given."""

    METHOD: ClassVar = ow.RigL(sparsity=0.6, allocation="uniform", steps=20, every=3)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.target, self.sound = folder / "changed", []
        for stored in (False, True):
            model, optimizer, sparsifier = self._run(stored)
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.ones(5, 9)).square().sum().backward()
                optimizer.step()
            ow.save_checkpoint(
                self.target,
                model=model,
                optimizer=optimizer,
                sparsifier=sparsifier,
                extra={"epoch": [1, 2.5]},
            )
            self.sound.append(self.target.read_bytes())

    def _run(self, stored: bool) -> tuple[nn.Module, torch.optim.Optimizer, ow.Sparsifier]:
        model = nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 4))
        if stored:
            ow.to_sparse_(model, self.METHOD)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, ow.attach(model, optimizer, self.METHOD)

    def load(self, chance: random.Random) -> None:
        model, optimizer, sparsifier = self._run(stored=self.which == 1)
        try:
            ow.load_checkpoint(self.target, model=model, optimizer=optimizer, sparsifier=sparsifier)
        finally:
            with torch.no_grad():
                model(torch.ones(5, 9))
            for c in sparsifier.connections.values():
                assert bool((c.positions.diff() > 0).all())


class Calibrations(Archives):
    """A walk that was interrupted: its blocks are taken over, or the walk is refused and the model as it was."""

    RECIPE: ClassVar = (ow.Wanda(sparsity=0.5), ow.SpQR(), ow.BiasCorrect(add=True))

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.walk = folder / "walk"
        self._calibrate()
        self.paths = sorted(self.walk.iterdir())
        self.sound = [path.read_bytes() for path in self.paths]

    def _calibrate(self) -> None:
        g = torch.Generator().manual_seed(0)
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16, bias=False), nn.Tanh()) for _ in range(2))
        self.model = nn.Sequential(*blocks)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=g))
        self.before = {name: p.clone() for name, p in self.model.named_parameters()}
        self.found = ow.sparsify_(
            self.model, list(self.RECIPE), data=[torch.randn(8, 16, generator=g)], checkpoint=self.walk
        )

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        for path, content in zip(self.paths, self.sound, strict=True):
            path.write_bytes(content)
        self.target = self.paths[0]
        kind, _ = super().change(chance)
        self.target.replace(self.paths[self.which])
        return kind, [str(self.walk)]

    def load(self, chance: random.Random) -> None:
        try:
            self._calibrate()
        except FileError:
            after = dict(self.model.named_parameters())
            assert self.before.keys() == after.keys(), "a checkpoint that was refused has changed the model"
            assert all(torch.equal(p, after[name]) for name, p in self.before.items())
            raise
        self.model(torch.ones(2, 16))
