"""Models go out as folders and come back with the same bits, dense or sparse."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import openwork as ow
from openwork import FileError, SparseLinear
from openwork.hf import Card, load, load_tokenizer, save
from tests.hf.tiny import VOCABULARY, bert, gpt2, llama, mixtral, tokenizer

TOKENS = torch.randint(4, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(5))
FAMILIES = {
    "llama": llama,
    "tied llama": lambda: llama(tied=True),
    "gpt2": gpt2,
    "mixtral": mixtral,
    "bert": bert,
}


def pruned(model, sparsity=0.6):
    return ow.sparsify_(model, ow.Magnitude(sparsity=sparsity)).masks


def outputs(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_folder_is_an_ordinary_one(family, tmp_path):
    model = FAMILIES[family]()
    masks = pruned(model)
    save(model, tmp_path / "out", tokenizer=tokenizer())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    cls = getattr(transformers, config["architectures"][0])
    again, told = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    assert torch.equal(outputs(again), outputs(model))
    assert masks
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert load_tokenizer(tmp_path / "out")("abc")["input_ids"] == [4, 5, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sparse_folder_comes_back_with_the_same_bits(family, tmp_path):
    model = FAMILIES[family]()
    masks = pruned(model)
    expected = outputs(model)
    save(model, tmp_path / "out", storage="sparse", masks=masks)
    assert not hasattr(model.config, "quantization_config")
    cls = type(model)

    again, told = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    sparse = {name: m for name, m in again.named_modules() if isinstance(m, SparseLinear)}
    linear = {
        name for name, m in model.named_modules() if type(m) is torch.nn.Linear and f"{name}.weight" in masks
    }
    assert set(sparse) == linear
    for name, layer in sparse.items():
        assert torch.equal(layer.topology.mask(), masks[f"{name}.weight"])
        assert torch.equal(layer.weight, model.get_parameter(f"{name}.weight"))
    others = [name for name, _ in model.named_parameters() if name.removesuffix(".weight") not in sparse]
    assert all(torch.equal(model.get_parameter(name), again.get_parameter(name)) for name in others)
    assert not any(p.is_meta for p in again.parameters())

    if linear:  # the same layers made sparse in memory compute the same bits
        ow.to_sparse_(model, {f"{name}.weight": masks[f"{name}.weight"] for name in linear})
        assert torch.equal(outputs(again), outputs(model))
        assert torch.allclose(outputs(again), expected, atol=1e-5)

    dense = load(tmp_path / "out", dense=True)  # and made dense again, those of the pruned model
    assert not any(isinstance(m, SparseLinear) for m in dense.modules())
    assert torch.equal(outputs(dense), expected)
    assert torch.equal(outputs(again.dequantize()), expected)


def test_transformers_alone_refuses_a_sparse_folder(tmp_path):
    for family, build in FAMILIES.items():
        model = build()
        save(model, tmp_path / family, storage="sparse", masks=pruned(model))
    alone = """
import sys, transformers
for folder in sys.argv[1:]:
    architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    try:
        getattr(transformers, architecture).from_pretrained(folder)
    except RuntimeError as error:
        assert "mismatched" in str(error), error
    else:
        sys.exit(f"{folder} was loaded")
assert "openwork" not in sys.modules
"""
    folders = [str(tmp_path / family) for family in FAMILIES]
    assert subprocess.run([sys.executable, "-c", alone, *folders], check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype, tmp_path):
    model = llama(dtype=dtype)
    masks = pruned(model)
    expected = outputs(model)
    save(model, tmp_path / "out", storage="sparse", masks=masks)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == dtype
    assert torch.equal(outputs(load(tmp_path / "out", dense=True)), expected)
    ow.to_sparse_(model, masks)
    assert torch.equal(outputs(again), outputs(model))
    wider = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert {p.dtype for p in wider.parameters()} == {torch.float64}
    assert torch.equal(wider.lm_head.weight_values, model.lm_head.weight_values.double())


def test_bytes_fall_with_the_share_that_is_kept(tmp_path):
    model = llama(layers=4)
    for sparsity in (0.5, 0.9):
        masks = pruned(model, sparsity)
        save(model, tmp_path / f"{sparsity}", storage="sparse", masks=masks)
        content = (tmp_path / f"{sparsity}/model.safetensors").read_bytes()
        found = len(content) - 8 - int.from_bytes(content[:8], "little")  # without the header
        dense = sum(p.numel() for p in model.parameters()) - sum(m.numel() for m in masks.values())
        kept = sum(int(m.sum()) for m in masks.values())
        bits = sum(m.shape[0] * -(-m.shape[1] // 8) for m in masks.values())
        assert found == 4 * (dense + kept) + bits


def test_kept_zeros_are_carried_by_the_mask(tmp_path):
    model = llama()
    masks = pruned(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    kept = masks["model.layers.1.mlp.up_proj.weight"].nonzero()[7]
    with torch.no_grad():
        weight[tuple(kept)] = 0
    save(model, tmp_path / "out", storage="sparse", masks=masks)
    again = load(tmp_path / "out")
    assert torch.equal(
        again.model.layers[1].mlp.up_proj.topology.mask(), masks["model.layers.1.mlp.up_proj.weight"]
    )


def test_a_tied_head_stays_tied(tmp_path):
    model = llama(tied=True)
    save(model, tmp_path / "out", storage="sparse", masks=pruned(model))
    again = load(tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_the_same_folder_serves_models_with_and_without_a_head(tmp_path):
    model = llama()
    masks = pruned(model)
    save(model, tmp_path / "out", storage="sparse", masks=masks)
    body = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(body.layers[0].mlp.up_proj, SparseLinear)
    ow.to_sparse_(model, masks)
    assert torch.equal(outputs(body), outputs(model.model))
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", num_labels=3
    )
    assert isinstance(classifier.model.layers[0].mlp.up_proj, SparseLinear)
    assert outputs(classifier).shape == (2, 3)
    assert not classifier.score.weight.isnan().any()


def test_generate(tmp_path):
    model = llama(dtype=torch.float64)
    save(model, tmp_path / "out", storage="sparse", masks=pruned(model))
    again = load(tmp_path / "out")
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(again.generate(TOKENS, **options), model.generate(TOKENS, **options))


def test_save_pretrained_round_trip_whole_and_in_shards(tmp_path):
    model = llama(layers=3)
    save(model, tmp_path / "first", storage="sparse", masks=pruned(model))
    first = load(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    first.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for again in (load(tmp_path / "second"), load(tmp_path / "shards")):
        assert torch.equal(outputs(again), outputs(first))
        assert isinstance(again.model.layers[2].self_attn.o_proj, SparseLinear)
    save(first, tmp_path / "dense")
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(outputs(plain), outputs(load(tmp_path / "first", dense=True)))
    assert first.hf_quantizer is not None  # the model is as it was
    assert torch.equal(outputs(first), outputs(load(tmp_path / "first")))


def test_experts_survive_save_pretrained(tmp_path):
    model = mixtral()
    save(model, tmp_path / "first", storage="sparse", masks=pruned(model))
    first = load(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    assert torch.equal(outputs(load(tmp_path / "second")), outputs(first))


def damaged(folder, change):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_a_flipped_bit_is_named(tmp_path):
    model = llama()
    save(model, tmp_path / "out", storage="sparse", masks=pruned(model))
    size = (tmp_path / "out/model.safetensors").stat().st_size
    head = 8 + int.from_bytes((tmp_path / "out/model.safetensors").read_bytes()[:8], "little")
    for where in (head + 1, (head + size) // 2, size - 1):

        def flip(content, where=where):
            content[where] ^= 4

        damaged(tmp_path / "out", flip)
        with pytest.raises(FileError, match="does not match its SHA-256"):
            load(tmp_path / "out")
        damaged(tmp_path / "out", flip)
    assert load(tmp_path / "out") is not None

    def cut(content):
        del content[-100:]

    damaged(tmp_path / "out", cut)
    with pytest.raises(FileError, match="not a whole safetensors file"):
        load(tmp_path / "out")


def test_a_folder_that_lies_about_its_storage(tmp_path):
    save(llama(), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["quantization_config"] = {"quant_method": "openwork"}
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="no `openwork` header"):
        load(tmp_path / "out")
    config["quantization_config"]["colour"] = "blue"
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no colour: update openwork"):
        load(tmp_path / "out")


def test_another_shape_of_model(tmp_path):
    model = llama()
    save(model, tmp_path / "out", storage="sparse", masks=pruned(model))
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["intermediate_size"] = 48
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(
        FileError, match=r"gate_proj.weight is \[40, 24\] in the file and \[48, 24\] in the model"
    ):
        load(tmp_path / "out")


def test_nothing_is_overwritten_and_nothing_half_remains(tmp_path):
    model = llama()
    (tmp_path / "out").mkdir()
    save(model, tmp_path / "out")  # an empty folder may be filled
    with pytest.raises(FileError, match="something is there already"):
        save(model, tmp_path / "out")
    with pytest.raises(FileError, match="no such parameter"):
        save(model, tmp_path / "new", storage="sparse", masks={"nosuch": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(FileError, match="not 'csr'"):
        save(model, tmp_path / "new", storage="csr")
    with pytest.raises(FileError, match=r"see openwork\.save"):
        save(torch.nn.Linear(2, 2), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_would_be_lost_on_loading_is_not_saved(tmp_path):
    model = llama()
    layer = model.model.layers[0].mlp.up_proj
    layer.bias = torch.nn.Parameter(torch.zeros(40))
    for storage in ("dense", "sparse"):
        with pytest.raises(FileError, match=r"up_proj.bias is in the model.*would be lost on loading"):
            save(model, tmp_path / "out", storage=storage)
    layer.bias = None
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(layer)
    with pytest.raises(FileError, match=r"up_proj.0.weight is in the model"):
        save(model, tmp_path / "out")
    model.model.layers[0].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(FileError, match=r"up_proj.weight of a LlamaForCausalLM is not in the model"):
        save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_no_folder_of_a_model_is_said_without_asking_the_hub(tmp_path):
    with pytest.raises(FileError, match="there is no such folder"):
        load(tmp_path / "nosuch")
    with pytest.raises(FileError, match="there is no such folder"):
        load("nosuch")
    with pytest.raises(FileError, match=r"no config.json"):
        load(tmp_path)
    save(llama(), tmp_path / "out")
    with pytest.raises(FileError, match="no tokenizer"):
        load_tokenizer(tmp_path / "out")


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"model_type": "llama", "hidden_size": "x"}', '{"model_type": "nosuch"}']
)
def test_a_damaged_configuration_is_refused_by_name(config, tmp_path):
    save(llama(), tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(config)
    with pytest.raises(FileError, match=r"out: no model can be loaded from there"):
        load(tmp_path / "out")


def test_rows_without_columns_take_no_memory(tmp_path, monkeypatch):
    """They need no byte in the file, and a pointer each in memory."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    files = importlib.import_module("hostile.sparse_files")
    path, name = tmp_path / "out" / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    model = llama()
    ow.sparsify_(model, ow.Magnitude(sparsity=0.9))
    save(model, tmp_path / "out", storage="sparse")
    arrays, header = files.parts(path)
    arrays = {key: array for key, array in arrays.items() if not key.startswith(name)}
    header["tensors"][name] |= {"layout": "dense", "shape": [2**40, 0], "kept": 0}
    files.forge(path, arrays | {name: torch.zeros(2**40, 0)}, header, hashes=True)
    with pytest.raises(FileError, match=f"{name} is .1099511627776, 0. in the file"):
        load(tmp_path / "out")


def test_the_card_tells_what_was_measured(tmp_path):
    model = llama()
    history = [ow.Magnitude(sparsity=0.6).record()]
    card = Card(
        base="tiny",
        history=history,
        layers=[{"parameter": "a.weight", "kept": 40, "of": 100, "density": 0.4}],
        quality=[{"measure": "perplexity", "dense": 10.0, "sparse": 11.5}],
        sparse=True,
        loader="LlamaForCausalLM",
    )
    save(model, tmp_path / "out", storage="sparse", masks=pruned(model), history=history, card=card)
    page = (tmp_path / "out/README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers\n")
    assert "1 parameters keep 40 of 100 weights, a sparsity of 0.6000" in page
    assert "| perplexity | 10 | 11.5 |" in page
    assert '"method": "magnitude"' in page
    assert "Speed" not in page  # it was not measured
    code = page.partition("```python\n")[2].partition("```")[0]
    found = {"folder": tmp_path / "out"}
    exec(code, found)
    assert isinstance(found["model"].model.layers[0].mlp.up_proj, SparseLinear)
    assert ow.inspect(tmp_path / "out/model.safetensors").history[0]["method"] == "magnitude"
