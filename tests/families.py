"""Tiny random-weight models of many families, and a tokenizer for them, made in memory: no network, no files."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from kvviz.pair import LoadedModel, wrap_model

COMMON: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# What each family needs beyond COMMON: the properties that make it worth testing.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},  # not hidden_size // heads
    "mistral": {"sliding_window": 5},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    },
    "phi3": {"sliding_window": 6},
    "phi": {},
    "gpt2": {"n_embd": 48, "n_head": 4, "n_layer": 4, "max_position_embeddings": 256},
    "gpt_neox": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    },
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 48, "max_position_embeddings": 256},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "granite": {"attention_multiplier": 0.2},
    "stablelm": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    },
    "cohere": {},  # interleaved pairs
    "cohere2": {
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },  # NoPE where full
    "glm4": {"head_dim": 12},
    "gpt_oss": {
        "head_dim": 16,
        "sliding_window": 5,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "llama_yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
        }
    },
}
FAMILIES = list(SETTINGS)
NO_ROPE = ("gpt2", "opt")
NO_GROUPS = ("gpt2", "opt", "gpt_neox", "bloom", "gptj")  # no key-value heads apart from the query heads


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte after a BOS, with character offsets: 256 bytes and three special tokens."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model(name: str, seed: int = 0, **settings: Any) -> Any:
    """A random model of a family in float32; `settings` replace the family's own."""
    kind = name.removesuffix("_yarn")
    common = {
        key: value for key, value in COMMON.items() if kind not in NO_GROUPS or key != "num_key_value_heads"
    }
    config = CONFIG_MAPPING[kind](**{**common, **SETTINGS.get(name, {}), **settings})
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The usual initialisation makes attention nearly uniform, which hides a wrong score: spread it out.
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
    return built.eval()


@cache
def family(name: str) -> LoadedModel:
    """A loaded model of a family, one for all tests: leave it as you found it."""
    return wrap_model(model(name), byte_tokenizer(), name=name)
