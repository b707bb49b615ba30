"""``openwork merge`` and ``openwork delta`` go from folder to folder, say what they did, and leave nothing half done."""

import json
import re

import pytest
import torch
import transformers

import openwork.hf
from openwork import DARE, TIES, cli, merge_
from tests.hf.tiny import bert, gpt2, llama, mixtral, seeded, tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. " * 12


def moved(model, seed, size=0.05):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=g)
    return model


@pytest.fixture
def folders(tmp_path):
    openwork.hf.save(llama(), tmp_path / "base", tokenizer=tokenizer())
    for name, seed in (("a", 1), ("b", 2)):
        openwork.hf.save(moved(llama(), seed), tmp_path / name)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


PATHS = ("base", "a", "b", "out", "out2", "file", "nowhere", "text.txt")


def run(command, folder, *names_and_options):
    return cli.main([command, *(str(folder / n) if n in PATHS else n for n in names_and_options)])


def equal(one, other):
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(n == m and torch.equal(p, q) for (n, p), (m, q) in pairs)


def test_two_models_in_one(folders, capsys):
    options = ["--method", "dare", "--sparsity", "0.8", "--weights", "0.5", "1.5", "--seed", "3"]
    assert run("merge", folders, "base", "a", "b", "out", *options, "--evaluate", "text.txt", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    expected = llama()
    models = [moved(llama(), 1), moved(llama(), 2)]
    done = merge_(expected, models, DARE(sparsity=0.8, seed=3), weights=[0.5, 1.5])
    merged = transformers.AutoModelForCausalLM.from_pretrained(folders / "out")
    assert equal(merged, expected)
    assert [row["kept"] for row in said["parameters"]] == [list(row.kept) for row in done]
    (quality,) = said["quality"]
    assert list(quality) == ["measure", "base", "a", "b", "merged"]
    page = (folders / "out/README.md").read_text()
    assert "merged with a, b" in page
    assert "| measure | base | a | b | merged |" in page
    assert transformers.AutoTokenizer.from_pretrained(folders / "out").vocab_size == tokenizer().vocab_size


def test_the_table_for_people(folders, capsys):
    assert run("merge", folders, "base", "a", "b", "out") == 0
    out = capsys.readouterr()
    assert re.search(r"model.layers.0.mlp.down_proj.weight +24x40  kept \d+ \d+ of 960  size 0.05", out.out)
    assert "ties: " in out.out
    assert "the merged model is in" in out.err
    expected = llama()
    merge_(expected, [moved(llama(), 1), moved(llama(), 2)], TIES())
    assert equal(openwork.hf.load(folders / "out"), expected)


def test_a_delta_file_stands_for_its_model(folders, capsys):
    assert run("delta", folders, "base", "a", "file", "--sparsity", "0.95", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["bytes"] == (folders / "file").stat().st_size
    assert run("merge", folders, "base", "file", "out", "--method", "task_arithmetic", "--scale", "1") == 0
    expected = llama()
    merge_(expected, [moved(llama(), 1)], DARE(sparsity=0.95))
    merged = openwork.hf.load(folders / "out")
    for name, p in expected.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), p, rtol=1e-6, atol=1e-7)
    assert run("delta", folders, "base", "a", "file") == 1
    assert "something is there already" in capsys.readouterr().err


@pytest.mark.parametrize("make", [gpt2, mixtral, lambda seed=0: llama(tied=True, seed=seed)])
def test_transposed_tied_and_fused_weights(make, tmp_path):
    openwork.hf.save(make(), tmp_path / "base")
    openwork.hf.save(moved(make(), 1), tmp_path / "a")
    assert run("merge", tmp_path, "base", "a", "out", "--method", "dare", "--pattern", "fan_in") == 0
    expected = make()
    merge_(expected, [moved(make(), 1)], DARE(pattern="fan_in"))
    merged = openwork.hf.load(tmp_path / "out")
    assert equal(merged, expected)
    name = next(
        n for n, p in merged.named_parameters() if (p.dim() == 2 and "proj" in n) or "c_fc.weight" in n
    )
    weight, start = merged.get_parameter(name), make().get_parameter(name)
    per_output = (weight != start).sum(0 if make is gpt2 else 1)
    assert len(set(per_output.tolist())) == 1


def test_a_head_that_the_base_lacks_comes_whole(tmp_path, capsys):
    openwork.hf.save(bert(), tmp_path / "base")
    config = bert().config
    config.num_labels = 3
    for name, seed in (("a", 1), ("b", 2)):
        classifier = seeded(lambda: transformers.BertForSequenceClassification(config), seed)
        classifier.bert.load_state_dict(bert().state_dict())
        openwork.hf.save(moved(classifier, seed), tmp_path / name)
    assert run("merge", tmp_path, "base", "a", "out", "--method", "dare", "--sparsity", "0.5") == 0
    merged, tuned = openwork.hf.load(tmp_path / "out"), openwork.hf.load(tmp_path / "a")
    assert torch.equal(merged.classifier.weight, tuned.classifier.weight)
    name = "bert.encoder.layer.0.output.dense.weight"
    still = (merged.get_parameter(name) == bert().get_parameter(name.removeprefix("bert."))).float().mean()
    assert still == 0.5
    assert run("merge", tmp_path, "base", "a", "b", "out2") == 1
    assert "heads of several models" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_zeros_of_a_sparse_base_stay_and_make_the_folder_small(tmp_path):
    base = llama()
    for name, p in base.named_parameters():
        if "mlp" in name:
            p.data.view(-1)[::2] = 0.0
    openwork.hf.save(base, tmp_path / "base", storage="sparse")
    openwork.hf.save(moved(llama(), 1), tmp_path / "a")
    assert run("merge", tmp_path, "base", "a", "out", "--format", "sparse", "--method", "dare") == 0
    merged = openwork.hf.load(tmp_path / "out", dense=True)
    for name, p in merged.named_parameters():
        if "mlp" in name:
            assert not p.view(-1)[::2].any()
    assert "import openwork.hf" in (tmp_path / "out/README.md").read_text()
    assert run("merge", tmp_path, "base", "a", "out2", "--fill-zeros", "--method", "task_arithmetic") == 0
    assert openwork.hf.load(tmp_path / "out2").model.layers[0].mlp.up_proj.weight.all()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["base", "out"], "name the fine-tuned models and the folder to write"),
        (["base", "nowhere", "out"], "nowhere"),
        (["base", "a", "b"], "something is there already"),
        (["base", "a", "out", "--method", "wanda"], "wanda does not merge models"),
        (["base", "a", "out", "--method", "tiess"], "did you mean ties"),
        (["base", "a", "out", "--method", "ties", "--rescale", "0.5"], "ties has no 'rescale'"),
        (["base", "a", "b", "out", "--weights", "1"], "a weight for each: got 2 and 1"),
        (["base", "a", "out", "--exclude", "nothing.*"], "exclude: 'nothing.*' matches no weight matrix"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(folders, tokens, said, capsys):
    before = sorted(path.name for path in folders.iterdir())
    assert run("merge", folders, *tokens) == 1
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in folders.iterdir()) == before


def test_models_that_do_not_match(folders, capsys):
    openwork.hf.save(llama(layers=1), folders / "small")
    assert cli.main(["merge", *(str(folders / n) for n in ("base", "a", "small", "out"))]) == 1
    assert "the base has model.layers.1" in capsys.readouterr().err
    assert not (folders / "out").exists()
