"""Geometry is read from a config; here against the projections of real modules and hand-made configs."""

import dataclasses
import math

import pytest
from transformers import (
    DeepseekV3Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
)

from kvviz.capture import capture_ids
from kvviz.geometry import Geometry
from tests.families import FAMILIES, NO_ROPE, byte_tokenizer, family


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_says_what_a_forward_shows(name):
    loaded = family(name)
    declared = Geometry.from_config(loaded.model.config)
    trace = capture_ids(loaded, byte_tokenizer()("one two", return_tensors="pt").input_ids)

    assert dataclasses.replace(declared, name=name) == loaded.geometry
    assert trace.q.shape == (1, declared.layers, declared.heads, 8, declared.head_dim)
    assert trace.k.shape == (1, declared.layers, declared.kv_heads, 8, declared.head_dim)
    assert trace.v.shape == (1, declared.layers, declared.kv_heads, 8, declared.value_dim)
    assert (declared.rope_theta is None) == (name in NO_ROPE)


def test_an_explicit_head_dim_wins():
    config = Qwen3Config(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=32, num_hidden_layers=3
    )
    geometry = Geometry.from_config(config)
    assert (geometry.layers, geometry.heads, geometry.kv_heads, geometry.head_dim) == (3, 8, 2, 32)
    assert geometry.group == 4


def test_gpt2_spellings_and_no_rotation():
    geometry = Geometry.from_config(GPT2Config(n_layer=3, n_head=4, n_embd=32))
    assert dataclasses.astuple(geometry) == (3, 4, 4, 8, 8, None, "gpt2")


def test_the_text_decoder_of_a_multimodal_model():
    text = Gemma3TextConfig(num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=24)
    assert dataclasses.replace(
        Geometry.from_config(Gemma3Config(text_config=text)), name=""
    ) == dataclasses.replace(Geometry.from_config(text), name="")


def test_theta_of_the_full_attention_layers_where_layers_differ():
    assert Geometry.from_config(Gemma3TextConfig()).rope_theta == 1_000_000.0


def test_latent_attention_has_its_own_value_dim():
    geometry = Geometry.from_config(
        DeepseekV3Config(
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=12,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )
    assert (geometry.dim_of("q"), geometry.dim_of("k"), geometry.dim_of("v")) == (24, 24, 12)


def test_heads_and_dims_of_each_part():
    geometry = Geometry(layers=2, heads=8, kv_heads=2, head_dim=16, value_dim=12, rope_theta=1e4, name="x")
    assert [geometry.heads_of(part) for part in "qkv"] == [8, 2, 2]
    assert [geometry.dim_of(part) for part in "qkv"] == [16, 16, 12]
    assert geometry.as_dict()["kv_heads"] == 2
    assert math.isclose(Geometry.from_config(LlamaConfig()).rope_theta, 10_000.0)
    assert hash(geometry) == hash(dataclasses.replace(geometry))


def test_models_without_attention_are_refused():
    with pytest.raises(ValueError, match="mamba names no attention layers"):
        Geometry.from_config(MambaConfig())


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"head_dim": -1}, {"heads": 3}])
def test_impossible_geometries_are_refused(wrong):
    with pytest.raises(ValueError, match=r"a geometry needs|do not divide"):
        Geometry(**{"layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 8, **wrong})
