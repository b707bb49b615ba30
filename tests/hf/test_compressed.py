"""Quantised folders, read back by the package that defines their format."""

import json

import pytest
import torch
from safetensors.torch import load_file

import openwork as ow
from openwork.quantization import IntegerGrid

transformers = pytest.importorskip("transformers")
pack = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
from compressed_tensors.quantization import QuantizationConfig  # noqa: E402

from openwork.hf.compressed import export_quantized  # noqa: E402


def llama(dtype: torch.dtype = torch.float32):  # type: ignore[no-untyped-def]
    config = transformers.LlamaConfig(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).to(dtype).eval()


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 67, (2, 10), generator=generator)} for _ in range(2)]


RECIPES = {
    "int4 groups": [ow.RTN(group=16)],
    "int8 rows": [ow.GPTQ(grid="int8-symmetric", group="row")],
    "int3 one scale": [ow.RTN(grid="int3", group="tensor")],
    "2:4 and int4": [ow.Wanda(pattern="2:4"), ow.GPTQ(group=16)],
    "static groups": [ow.GPTQ(group=8, act_order=True, static_groups=True)],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_package_reads_back_equal_weights(recipe: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = llama()
    found = ow.sparsify_(model, RECIPES[recipe], data=data())
    export_quantized(model, found, tmp_path / "folder")
    record = json.loads((tmp_path / "folder" / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate({k: v for k, v in record.items() if k != "version"})
    scheme = config.config_groups["group_0"]
    arrays = load_file(tmp_path / "folder" / "model.safetensors")
    for name in found.parts:
        layer = name.removesuffix(".weight")
        held = {k.removeprefix(f"{layer}."): v for k, v in arrays.items() if k.startswith(f"{layer}.weight")}
        weight = pack.PackedQuantizationCompressor.decompress(held, scheme)["weight"]
        assert torch.equal(weight, model.get_parameter(name))
        assert bool((weight[~found.masks[name]] == 0).all())
    assert "lm_head" in record["ignore"]


@pytest.mark.parametrize(("dtype", "scales"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_transformers_loads_the_folder(dtype: torch.dtype, scales: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = llama(dtype)
    found = ow.sparsify_(model, ow.RTN(grid=IntegerGrid(4, scales=scales), group=16), data=data())
    export_quantized(model, found, tmp_path / "folder")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=dtype).eval()
    x = data()[0]
    with torch.no_grad():
        assert torch.equal(loaded(**x).logits, model(**x).logits)


def test_mixed_schemes_name_their_layers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = llama()
    fine, coarse = ow.RTN(grid="int8", group=16, exclude=("*mlp*",)), ow.RTN(group=16, exclude=("*attn*",))
    found = ow.sparsify_(model, [fine, coarse], data=data())
    export_quantized(model, found, tmp_path / "folder")
    record = json.loads((tmp_path / "folder" / "config.json").read_text())["quantization_config"]
    groups = record["config_groups"].values()
    assert sorted(g["weights"]["num_bits"] for g in groups) == [4, 8]
    assert all("Linear" not in g["targets"] for g in groups)


def test_what_the_format_does_not_hold_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    reasons = {
        "equal groups of 12": [ow.RTN(group=12)],
        "static_groups": [ow.GPTQ(group=8, act_order=True)],
        "outliers": [ow.SpQR(group=16)],
        "FloatGrid": [ow.RTN(grid="e2m1", group=16)],
        "needs a quantiser": [ow.Wanda()],
    }
    for reason, recipe in reasons.items():
        model = llama()
        found = ow.sparsify_(model, recipe, data=data())
        with pytest.raises(ow.FileError, match=reason):
            export_quantized(model, found, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()
    model = llama(torch.bfloat16)
    found = ow.sparsify_(model, ow.RTN(group=16), data=data())
    with pytest.raises(ow.FileError, match="scales='bfloat16'"):
        export_quantized(model, found, tmp_path / "folder")
