"""Models of Transformers, as their classes are: causal and encoder, Conv1D, fused experts, masks of several kinds."""

import copy

import pytest
import torch

import openwork as ow
from openwork.blocks import stacks
from openwork.calibrator.stream import Stream
from openwork.patterns import FanIn
from tests.calibrator.stages import SEEN, Watch, same, weights

tf = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    **SMALL,
}


def gpt2():
    return tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=3, n_embd=32, n_head=4, n_positions=64, **SMALL))


def llama():
    return tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=3, **DECODER))


def bert():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return tf.BertModel(tf.BertConfig(**sizes, **SMALL))


def mixtral():
    return tf.MixtralForCausalLM(tf.MixtralConfig(num_hidden_layers=2, num_local_experts=4, **DECODER))


def gemma():
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(num_hidden_layers=7, head_dim=8, sliding_window=4, **DECODER)
    )


def drawn(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def texts():
    """Two batches, the second with padding on the right."""
    g = torch.Generator().manual_seed(0)
    found = [
        {"input_ids": torch.randint(3, 50, (2, 12), generator=g), "attention_mask": torch.ones(2, 12).long()}
        for _ in range(2)
    ]
    found[1]["attention_mask"][0, 8:] = 0
    return found


@pytest.mark.parametrize("make", [gpt2, llama, bert, mixtral, gemma])
def test_no_change_is_no_change_and_pruning_is_exact(make):
    SEEN.clear()
    model = drawn(make)
    before = weights(model)
    with torch.no_grad():
        outputs = model(**texts()[1])[0]
    ow.sparsify_(model, Watch(), data=texts())
    assert same(before, weights(model))
    with torch.no_grad():
        assert torch.equal(outputs, model(**texts()[1])[0])
    assert max(layer.statistics.count for layer in SEEN) == 44  # two batches of 24 tokens, less 4 of padding
    found = ow.sparsify_(model, [ow.SparseGPT(sparsity=0.5, pattern="2:4"), ow.Refit()], data=texts())
    assert found.plan.sparsity == 0.5
    for row in found.plan.sparse:
        assert row.pattern.allows(found.masks[row.name])
        assert not row.weight.oriented(row.weight.parameter.detach())[~found.masks[row.name]].any()
        assert "embed" not in row.name
        assert "head" not in row.name


@pytest.mark.parametrize("make", [gpt2, llama, bert, gemma])
def test_blocks_are_seen_to_hang_together(make):
    model = drawn(make)
    (stack,) = stacks(model)
    with torch.no_grad():
        assert Stream(model, list(stack.blocks.values()), texts()).wiring is not None


@pytest.mark.parametrize("make", [llama, mixtral, gemma])
def test_later_blocks_read_what_the_compressed_model_gives_them(make):
    """The inputs recorded by walking are those of a run of the compressed model, masks of every kind included."""
    SEEN.clear()
    model = drawn(make)
    ow.sparsify_(model, [ow.Wanda(sparsity=0.5), Watch()], data=texts())
    name = next(layer.name for layer in SEEN if "layers.1.self_attn.o_proj" in layer.name)
    walked = next(layer.statistics for layer in SEEN if layer.name == name)
    partly = drawn(make)
    partly.model.layers[0].load_state_dict(model.model.layers[0].state_dict())
    rows = []
    hook = partly.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
        lambda _, a: rows.append(a[0])
    )
    with torch.no_grad():
        for batch in texts():
            partly(**batch, use_cache=False)
    hook.remove()
    x = torch.cat([row[batch["attention_mask"].bool()] for row, batch in zip(rows, texts(), strict=True)])
    assert walked.count == len(x) == 44
    torch.testing.assert_close(walked.gram, x.T @ x, rtol=1e-4, atol=1e-5)


def test_each_expert_is_solved_for_its_own_tokens():
    SEEN.clear()
    model = drawn(mixtral)
    ow.sparsify_(model, Watch(), data=texts())
    experts = {layer.name: layer.statistics for layer in SEEN if "experts" in layer.name}
    assert len(experts) == 2 * 2 * 4
    for kind in ("gate_up_proj", "down_proj"):
        counts = [experts[f"model.layers.0.mlp.experts.{kind}[{e}]"].count for e in range(4)]
        assert sum(counts) == 2 * 44  # every token goes to two experts, padding to none


def test_an_expert_that_no_token_chose_is_pruned_as_if_inputs_were_alike():
    model = drawn(mixtral)
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, out: (*out[:2], out[2].clamp(max=1)))
    dense = copy.deepcopy(model)
    found = ow.sparsify_(model, ow.Wanda(sparsity=0.5), data=texts())
    name = "model.layers.0.mlp.experts.down_proj"
    by_size = FanIn().choose(dense.get_parameter(name).detach().abs().flatten(0, 1), 4 * 32 * 24)
    same = (by_size == found.masks[name]).view(4, -1).all(1)
    assert same.tolist() == [False, False, True, True]
    assert model.config._experts_implementation == dense.config._experts_implementation


def test_transposed_weights_are_read_and_written_the_right_way_round():
    SEEN.clear()
    model = drawn(gpt2)
    dense = copy.deepcopy(model)
    found = ow.sparsify_(model, [ow.Wanda(sparsity=0.5), Watch()], data=texts())
    layer = next(x for x in SEEN if x.name == "transformer.h.0.mlp.c_fc.weight")
    assert layer.shape == (128, 32)
    assert torch.equal(layer.dense, dense.transformer.h[0].mlp.c_fc.weight.T)
    mask = found.masks["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, (layer.dense * mask).T)
