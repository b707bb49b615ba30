"""``openwork prune`` goes from folder to folder, says what it did, and leaves nothing half done."""

import json
import sys

import pytest
import torch
import transformers

import openwork as ow
import openwork.hf
from openwork import cli
from tests.hf.tiny import bert, gpt2, llama, tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. 1 2 3, it jumps again. " * 30


@pytest.fixture
def folder(tmp_path):
    openwork.hf.save(llama(), tmp_path / "dense", tokenizer=tokenizer())
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT[11:200])
    return tmp_path


def prune(folder, *options, model="dense", out="out", data=True):
    text = ["--data", str(folder / "text.txt"), "--samples", "6", "--seqlen", "24"] if data else []
    return cli.main(["prune", str(folder / model), str(folder / out), *text, *options])


def zeros(model):
    names = [n for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    return {n: float((model.get_parameter(n) == 0).float().mean()) for n in names}


def test_one_method_with_quality_before_and_after(folder, capsys):
    evaluate = ("--evaluate", str(folder / "other.txt"))
    assert prune(folder, "--method", "sparsegpt", "--sparsity", "0.5", *evaluate, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    assert set(zeros(model).values()) == {0.5}
    assert said["sparsity"] == 0.5
    assert said["kept"] * 2 == said["numel"] == sum(row["numel"] for row in said["layers"])
    assert [stage["method"] for stage in said["recipe"]] == ["sparsegpt"]
    assert len(said["stages"]) == 14
    (quality,) = said["quality"]
    assert quality["measure"].startswith("perplexity on other.txt (188 tokens, window 24, stride 12)")
    tokens = torch.tensor(tokenizer()((folder / "other.txt").read_text())["input_ids"])
    for which, network in (("dense", llama()), ("sparse", model)):
        from openwork.quality import perplexity

        assert quality[which] == pytest.approx(perplexity(network, tokens, window=24, stride=12).value)
    page = (folder / "out/README.md").read_text()
    assert "sparsity of 0.5000" in page
    assert "| perplexity on other.txt" in page
    assert transformers.AutoTokenizer.from_pretrained(folder / "out").vocab_size == tokenizer().vocab_size


def test_a_pattern_a_repair_and_the_sparse_format(folder, capsys):
    options = ["--method", "wanda", "--pattern", "2:4", "--repair", "refit", "--format", "sparse", "--speed"]
    assert prune(folder, *options) == 0
    out = capsys.readouterr()
    assert "asked sparsity 0.5; sparsity 0.500000" in out.out
    assert "ms for 24 tokens at once" in out.out
    assert "the model is in" in out.err
    again = openwork.hf.load(folder / "out")
    layer = again.model.layers[1].mlp.down_proj
    assert isinstance(layer, ow.SparseLinear)
    assert (layer.topology.mask().view(24, 10, 4).sum(-1) == 2).all()
    history = ow.inspect(folder / "out/model.safetensors").history
    assert [step["method"] for step in history] == ["wanda", "refit"]
    assert "import openwork.hf" in (folder / "out/README.md").read_text()


def test_magnitude_needs_no_data_and_leaves_the_head_dense(folder, capsys):
    assert prune(folder, "--method", "magnitude", "--sparsity", "0.7", data=False) == 0
    model = openwork.hf.load(folder / "out")
    assert model.lm_head.weight.all()
    assert list(zeros(model).values()) == pytest.approx([0.7] * 14, abs=0.01)


def test_a_recipe(folder, capsys):
    (folder / "recipe.toml").write_text(
        '[[stage]]\nmethod = "magnitude"\nsparsity = 0.6\n'
        '[[stage]]\nmethod = "perp_blocks"\nsteps = 3\nrank = 2\n'
        '[[stage]]\nmethod = "perp"\nsteps = 3\ntrain = ["norm"]\n'
    )
    assert prune(folder, "--recipe", str(folder / "recipe.toml"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [stage["method"] for stage in said["recipe"]] == ["magnitude", "perp_blocks", "perp"]
    assert list(zeros(openwork.hf.load(folder / "out")).values()) == pytest.approx([0.6] * 14, abs=0.01)
    assert prune(folder, "--recipe", str(folder / "recipe.toml"), "--sparsity", "0.5", out="two") == 1
    assert "leave out --sparsity" in capsys.readouterr().err


@pytest.mark.parametrize("family", [gpt2, bert])
def test_other_families(family, folder, capsys):
    openwork.hf.save(family(), folder / "other", tokenizer=tokenizer(encoder=family is bert))
    (folder / "pairs.tsv").write_text(
        "".join(f"a\tb\tc\t{i}\t{i}\ta fox\t{'a dog ' * i}.\n" for i in range(4))
    )
    name = "pairs.tsv" if family is bert else "other.txt"
    options = ["--method", "wanda", "--sparsity", "0.5", "--evaluate", str(folder / name)]
    assert prune(folder, *options, model="other", out="out") == 0
    assert (
        "Spearman on pairs.tsv (4 pairs)" if family is bert else "perplexity on"
    ) in capsys.readouterr().out
    assert type(openwork.hf.load(folder / "out")) is type(family())
    if family is bert:
        options[-1] = str(folder / "other.txt")
        assert prune(folder, *options, model="other", out="two") == 0
        assert "cosine with dense on other.txt (1 lines)" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_with_the_same_bits(folder, capsys, monkeypatch):
    options = ["--method", "sparsegpt", "--sparsity", "0.5", "--resume"]
    assert prune(folder, *options, out="straight") == 0
    assert not (folder / "straight.unfinished").exists()
    from openwork.calibrate.sparsegpt import SparseGPT

    solve, calls = SparseGPT.solve, []

    def interrupted(self, layer):
        calls.append(layer.name)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return solve(self, layer)

    monkeypatch.setattr(SparseGPT, "solve", interrupted)
    assert prune(folder, *options) == 130
    assert not (folder / "out").exists()
    assert prune(folder, *options) == 0
    assert len(calls) == 10 + 7  # the first block was not done again
    one, other = openwork.hf.load(folder / "straight"), openwork.hf.load(folder / "out")
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert not (folder / "out.unfinished").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "wanda"], "calibration data is what wanda works from, and there is none"),
        ([], "name a method (--method sparsegpt) or a recipe"),
        (["--method", "wnda"], "no method is called 'wnda': did you mean wanda"),
        (["--method", "rigl"], "rigl works while a model trains"),
        (
            ["--method", "magnitude", "--repair", "rfit"],
            "--repair: no method is called 'rfit': did you mean refit",
        ),
        (["--method", "magnitude", "--exclude", "nosuch"], "matches no parameter"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(folder, options, said, capsys):
    assert prune(folder, *options, data=False) == 1
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_data_that_does_not_fit(folder, capsys):
    base = [str(folder / "dense"), str(folder / "out"), "--method", "wanda"]
    assert cli.main(["prune", *base, "--data", str(folder / "text.txt"), "--seqlen", "65"]) == 1
    assert "windows of 65 tokens were asked for, and this model reads 64" in capsys.readouterr().err
    assert cli.main(["prune", *base, "--data", str(folder / "nosuch.txt")]) == 1
    (folder / "short.txt").write_text("short")
    assert cli.main(["prune", *base, "--data", str(folder / "short.txt")]) == 1
    assert "the longest of 1 has 5 tokens" in capsys.readouterr().err
    assert cli.main(["prune", str(folder), str(folder / "out"), "--method", "magnitude"]) == 1
    assert "no config.json in it" in capsys.readouterr().err
    assert cli.main(["prune", str(folder / "dense"), str(folder), "--method", "magnitude"]) == 1
    assert "something is there already" in capsys.readouterr().err


def test_without_the_extra(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert prune(folder, "--method", "magnitude", data=False) == 1
    assert "pip install 'openwork[hf]'" in capsys.readouterr().err
