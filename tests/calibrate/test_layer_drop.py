"""Whole blocks that hardly change what flows through them."""

import copy
import math

import pytest
import torch
from torch import nn

from openwork.calibrate.layer_drop import LayerDrop, drop_blocks_
from openwork.tasks.gpt import gpt_small


def model(depth: int = 5) -> nn.Module:
    small = gpt_small(width=16, depth=depth, heads=2, context=12, seed=3)
    with torch.no_grad():
        for i, block in enumerate(small.blocks):
            for p in block.parameters():
                p.mul_(1 + 2 * i if p.dim() > 1 else 1)
    return small


def identity(block: nn.Module) -> None:
    """Make a residual block return what it is given."""
    with torch.no_grad():
        for layer in (block.attention.out, block.mlp.down):  # type: ignore[union-attr]
            layer.weight.zero_()
            layer.bias.zero_()


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 65, (n, 12), generator=generator) for n in (3, 5)]


def states(small: nn.Module) -> list[torch.Tensor]:
    """What flows between blocks, ``[depth + 1]`` of ``[tokens, width]``."""
    found = []
    with torch.no_grad():
        x = torch.cat(data())
        h = small.tokens(x) + small.positions.weight[:12]
        for block in [*small.blocks]:
            found.append(h.flatten(0, 1).double())
            h = block(h)
    return [*found, h.flatten(0, 1).double()]


def test_influence_is_the_mean_turn_of_the_tokens() -> None:
    small = model()
    h = states(small)
    found = drop_blocks_(small, LayerDrop(), data=data())
    for i, score in enumerate(found.influence.values()):
        cosine = nn.functional.cosine_similarity(h[i], h[i + 1], dim=-1)
        assert score == pytest.approx(float((1 - cosine).mean()), abs=1e-6)


def test_an_identity_block_has_no_influence_and_goes_without_a_trace() -> None:
    small = model()
    identity(small.blocks[2])
    x = data()[0]
    before, size = small(x), sum(p.numel() for p in small.blocks[2].parameters())
    found = drop_blocks_(small, LayerDrop(), data=data())
    assert found.names == ("blocks.2",)
    assert found.influence["blocks.2"] == pytest.approx(0, abs=1e-12)
    assert torch.equal(small(x), before)
    assert found.before - found.after == size
    assert sum(p.numel() for p in small.parameters()) == found.after
    assert [name for name, _ in small.blocks.named_children()] == ["0", "1", "2", "3"]


def test_the_least_influential_go_and_the_ends_stay() -> None:
    small = model()
    identity(small.blocks[0])
    identity(small.blocks[4])
    found = drop_blocks_(small, LayerDrop(drop=2), data=data())
    middle = {n: found.influence[n] for n in ("blocks.1", "blocks.2", "blocks.3")}
    assert set(found.names) == set(sorted(middle, key=middle.__getitem__)[:2])
    other = model()
    identity(other.blocks[0])
    assert drop_blocks_(other, LayerDrop(protect=0), data=data()).names == ("blocks.0",)


@pytest.mark.parametrize("span", [1, 2, 3])
def test_a_span_is_the_one_of_least_angle(span: int) -> None:
    small = model(6)
    identity(small.blocks[3])
    h = states(small)
    angles = {}
    for i in range(1, 6 - span):
        cosine = nn.functional.cosine_similarity(h[i], h[i + span], dim=-1).clamp(-1, 1)
        angles[i] = float(cosine.acos().mean() / math.pi)
    best = min(angles, key=angles.__getitem__)
    found = drop_blocks_(small, LayerDrop(drop=span, span=True), data=data())
    assert found.names == tuple(f"blocks.{i}" for i in range(best, best + span))


def test_greedy_choice_goes_by_what_is_measured() -> None:
    small = model()
    x = data()[0]
    target = small(x).detach()

    def evaluate(candidate: nn.Module) -> float:
        return float((candidate(x).detach() - target).square().mean())

    alone = {}
    for i in (1, 2, 3):
        one = copy.deepcopy(small)
        del one.blocks[i]  # type: ignore[union-attr]
        alone[i] = evaluate(one)
    found = drop_blocks_(small, LayerDrop(), data=data(), evaluate=evaluate)
    assert found.names == (f"blocks.{min(alone, key=alone.__getitem__)}",)
    assert len(drop_blocks_(model(), LayerDrop(drop=3), data=data(), evaluate=evaluate).names) == 3


def test_padding_does_not_count() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    whole = [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :5]}]
    padded = [{"input_ids": ids, "attention_mask": mask}]
    apart = drop_blocks_(copy.deepcopy(llama), LayerDrop(), data=whole).influence
    together = drop_blocks_(llama, LayerDrop(), data=padded)
    for name, score in together.influence.items():
        assert score == pytest.approx(apart[name], abs=1e-5)
    assert llama.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in llama.model.layers] == [0, 1, 2]
    assert llama.generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 12)
    assert "dropped" in str(together)


def test_what_cannot_go_is_refused_and_nothing_changes() -> None:
    small = model(4)
    before = list(small.state_dict())
    with pytest.raises(ValueError, match="drop at most 2"):
        drop_blocks_(small, LayerDrop(drop=3), data=data())
    with pytest.raises(ValueError, match="leave evaluate out"):
        drop_blocks_(small, LayerDrop(span=True), data=data(), evaluate=lambda _: 0.0)
    with pytest.raises(ValueError, match="drop is at least 1"):
        LayerDrop(drop=0)

    def broken(_: nn.Module) -> float:
        raise RuntimeError("no more power")

    with pytest.raises(RuntimeError, match="no more power"):
        drop_blocks_(small, LayerDrop(), data=data(), evaluate=broken)
    assert list(small.state_dict()) == before
    shrinking = nn.Sequential(*(nn.Sequential(nn.Linear(n, n - 1)) for n in (8, 7, 6)))
    with pytest.raises(ValueError, match="no residual block"):
        drop_blocks_(shrinking, LayerDrop(), data=[torch.randn(3, 8)])
