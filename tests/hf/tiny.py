"""Tiny models of language and a tokenizer, built on the spot: no network, no files."""

import string

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ALPHABET = [*string.ascii_lowercase, *string.digits, *" .,\n"]


def tokenizer(*, encoder: bool = False):
    """One token a character; an encoder's puts [CLS] and [SEP] around a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *ALPHABET]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if encoder:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


VOCABULARY = 4 + len(ALPHABET)


def seeded(make, seed=0):
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        return make().eval()
    finally:
        torch.set_rng_state(state)


def llama(*, tied: bool = False, layers: int = 2, seed: int = 0, dtype=None, **options):
    """A decoder of the usual kind: grouped queries, gated perceptron, no biases."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.pop("hidden_size", 24),
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **options,
    )
    model = seeded(lambda: transformers.LlamaForCausalLM(config), seed)
    return model if dtype is None else model.to(dtype)


def gpt2(seed: int = 0):
    """A decoder whose layers hold their weights transposed (Conv1D), with biases and a tied head."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return seeded(lambda: transformers.GPT2LMHeadModel(config), seed)


def mixtral(seed: int = 0):
    """A decoder with experts, which transformers holds in one parameter of three dimensions."""
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return seeded(lambda: transformers.MixtralForCausalLM(config), seed)


def bert(seed: int = 0):
    """An encoder with biases."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return seeded(lambda: transformers.BertModel(config), seed)


def phi3(seed: int = 0):
    """A decoder that makes queries, keys and values in one layer, with grouped queries."""
    config = transformers.Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return seeded(lambda: transformers.Phi3ForCausalLM(config), seed)


def neox(seed: int = 0):
    """A decoder that makes query, key and value of one head after another in one layer."""
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    return seeded(lambda: transformers.GPTNeoXForCausalLM(config), seed)
