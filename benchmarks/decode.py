"""How many tokens a second a compressed language model reads and writes on this machine, dense beside it.

A decoder of the Llama kind: rotary attention, gated perceptrons, a cache of keys and values. Weights are random, since how fast
they are depends on where they are zero and not on what they are. Two things are timed: *decode*, one token after a context that
is cached, and *prefill*, a whole context at once. Forms, each at every sparsity:

- `dense float32`, `dense bfloat16`: PyTorch as it is;
- `packed dense`: what `pack_` makes of the dense model, the fastest dense kernels there are here;
- `unstructured`, `unstructured bfloat16`: any weight may go; packed, the second with leave to round weights;
- `row blocks`: 16 outputs share their inputs (`block 16x1`); packed;
- `codes int4`, `codes int8`: every weight a code, with scales in float16 for 128 inputs, and in float32 for a row;
- `int4 groups`: groups of 16 inputs are absent or codes of 4 bits, as `ow.GQSA` makes them.

Contenders of one sparsity take turns in one run, dense ones among them in every run.

    python benchmarks/decode.py [--width 1024] [--depth 4] [--context 128] [--sparsity 0.5 0.7 0.9] [--seconds 4] [--out FILE]
"""

import argparse
import copy
import gc
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import openwork as ow
from openwork.compare.machine import machine
from openwork.quantization import Group, nearest
from openwork.quantization import grid as named
from openwork.timing import latencies

OUTSIDE = ("lm_head.*",)


def model_of(width: int, depth: int, context: int) -> LlamaForCausalLM:
    """A decoder with perceptrons of 8/3 the width, in float32."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=4096,
        max_position_embeddings=context + 8,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def sparse(dense: LlamaForCausalLM, sparsity: float, pattern: str) -> LlamaForCausalLM:
    """A copy with the smallest weights gone."""
    model = copy.deepcopy(dense)
    ow.sparsify_(
        model, ow.Magnitude(sparsity=sparsity, pattern=pattern, allocation="uniform", exclude=OUTSIDE)
    )
    return model


def packed(model: LlamaForCausalLM, context: int, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The model with each layer in the form that is measured fastest for one token and for a context."""
    ow.pack_(
        model,
        {"input_ids": tokens(1), "use_cache": False},
        batches=[1, context],
        weight_dtype=dtype,
        seconds=0.1,
    )
    return model


def in_groups(dense: LlamaForCausalLM, sparsity: float) -> LlamaForCausalLM:
    """A copy with linear layers of groups in 4 bits, the smallest groups gone."""
    model = sparse(dense, sparsity, "block 1x16")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            layer = ow.GroupInt4Linear.from_dense(module.weight, bias=module.bias)
            model.get_submodule(parent).register_module(child, layer)
    return model


def in_codes(dense: LlamaForCausalLM, grid: str, group: Group) -> LlamaForCausalLM:
    """A copy with linear layers of codes, all weights kept."""
    model = copy.deepcopy(dense)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            layer = ow.QuantizedLinear(nearest(module.weight, named(grid), group), module.bias)
            model.get_submodule(parent).register_module(child, layer)
    return model


def tokens(count: int) -> Tensor:
    """Some tokens ``[1, count]``."""
    return torch.arange(count).view(1, -1) * 37 % 4096


class Running:
    """A model with a context in its cache."""

    def __init__(self, model: LlamaForCausalLM, context: int) -> None:
        self.model, self.context = model, context
        self.cache = DynamicCache()
        model(tokens(context), past_key_values=self.cache)

    def decode(self) -> None:
        """One token more, and forgotten again."""
        self.model(tokens(1), past_key_values=self.cache)
        self.cache.crop(-1)

    def prefill(self) -> None:
        """The whole context anew."""
        self.model(tokens(self.context), use_cache=False)


@dataclass(frozen=True)
class Speed:
    """One form at one sparsity."""

    form: str
    sparsity: float
    what: str
    tokens_per_second: float
    milliseconds: float
    quartiles: tuple[float, float]
    weights_mib: float
    layouts: str


def held(model: nn.Module, samples: int) -> tuple[float, str]:
    """MiB of the linear layers inside the blocks as they are read for so many samples, and in which layouts they are."""
    total, layouts = 0, Counter[str]()
    for name, module in model.named_modules():
        if name.startswith("model.layers") and hasattr(module, "in_features"):
            dispatch = getattr(module, "dispatch", None)
            chosen = module if dispatch is None else dispatch.nearest(samples)
            size = getattr(chosen, "nbytes", None)
            total += size if isinstance(size, int) else module.weight.nbytes
            layouts[getattr(chosen, "name", type(chosen).__name__)] += 1
    return total / 2**20, ", ".join(f"{count} {name}" for name, count in layouts.most_common())


@torch.no_grad()
def measure(options: argparse.Namespace, sparsity: float, dense: dict[str, Running]) -> list[Speed]:
    """Time all forms of one sparsity and the dense ones in turns."""
    base, context = dense["dense float32"].model, options.context
    made: dict[str, Callable[[], LlamaForCausalLM]] = {
        "unstructured": lambda: packed(sparse(base, sparsity, "unstructured"), context),
        "unstructured bfloat16": lambda: packed(
            sparse(base, sparsity, "unstructured"), context, torch.bfloat16
        ),
        "row blocks": lambda: packed(sparse(base, sparsity, "block 16x1"), context),
        "int4 groups": lambda: in_groups(base, sparsity),
    }
    running = {**dense, **{form: Running(make(), context) for form, make in made.items()}}
    found = []
    for what in ("decode", "prefill"):
        size = 1 if what == "decode" else context
        calls = {form: getattr(each, what) for form, each in running.items()}
        for form, latency in latencies(calls, seconds=options.seconds, rounds=7).items():
            speed = Speed(
                form, 0.0 if form in dense else sparsity, what, round(size / latency.median, 1),
                round(1e3 * latency.median, 3), (round(1e3 * latency.low, 3), round(1e3 * latency.high, 3)),
                *held(running[form].model, size),
            )  # fmt: skip
            found.append(speed)
            print(
                f"{sparsity:.0%} {what:8} {form:22} {speed.tokens_per_second:10.1f} tokens/s {speed.milliseconds:9.3f} ms "
                f"{speed.weights_mib:8.1f} MiB  {speed.layouts}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of measuring, for each sparsity and each of the two"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with torch.no_grad():
        base = model_of(options.width, options.depth, options.context)
        forms = {
            "dense float32": base,
            "dense bfloat16": copy.deepcopy(base).bfloat16(),
            "packed dense": packed(copy.deepcopy(base), options.context),
            "codes int4": in_codes(base, "int4-float16", 128),
            "codes int8": in_codes(base, "int8", "row"),
        }
        dense = {form: Running(model, options.context) for form, model in forms.items()}
    found = []
    for sparsity in options.sparsity:
        found += [{"run": sparsity, **asdict(speed)} for speed in measure(options, sparsity, dense)]
        gc.collect()
    if options.out:
        settings = {k: v for k, v in vars(options).items() if k != "out"}
        record = {
            "machine": asdict(machine()),
            "threads": torch.get_num_threads(),
            "settings": settings,
            "speeds": found,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
