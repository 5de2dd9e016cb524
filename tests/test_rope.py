"""The gates of every pre-RoPE figure: rotations are undone exactly, agree with transformers, and relocate."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

from kvviz.capture import capture_ids
from kvviz.pair import wrap_model
from kvviz.rope import Rope, RopeError, probe, rope_at
from tests.families import FAMILIES, NO_ROPE, byte_tokenizer, family, model

ROTARY = [name for name in FAMILIES if name not in NO_ROPE]
TEXT = "A train leaves at 7, and so do I."


def ids_of(text=TEXT):
    return byte_tokenizer()(text, return_tensors="pt").input_ids


def rotate_plainly(rope, x, layer):
    """The formula in the module's docstring, one number at a time, in Python floats."""
    y = torch.zeros_like(x)
    kind = rope.kinds[layer]
    for batch, head, position, dim in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        other = int(rope.partner[dim])
        cos, sin = (float(table[kind, batch, position, dim]) for table in (rope.cos, rope.sin))
        y[batch, head, position, dim] = cos * float(x[batch, head, position, dim]) + sin * float(
            x[batch, head, position, other]
        )
    return y


@given(seed=st.integers(0, 10_000), half=st.integers(1, 4), free=st.integers(0, 3), kinds=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_unrotating_is_exact_for_any_pairing_and_any_scale(seed, half, free, kinds):
    generator = torch.Generator().manual_seed(seed)
    dims, layers, batch, length = 2 * half + free, 4, 2, 3
    shuffled = torch.randperm(dims, generator=generator)
    partner = torch.arange(dims)
    partner[shuffled[:half]], partner[shuffled[half : 2 * half]] = shuffled[half : 2 * half], shuffled[:half]
    angle = torch.rand(kinds, batch, length, dims, generator=generator) * 6
    angle = torch.minimum(angle, angle[..., partner])
    scale = 0.5 + torch.rand(kinds, 1, 1, 1, generator=generator)
    sign = (partner - torch.arange(dims)).sign()
    rope = Rope(
        partner,
        torch.where(sign == 0, torch.ones_like(angle), angle.cos() * scale),
        angle.sin() * scale * -sign,
        tuple(layer % kinds for layer in range(layers)),
    )
    x = torch.randn(batch, layers, 2, length, dims, generator=generator, dtype=torch.float64)

    torch.testing.assert_close(rope.unrotate(rope.rotate(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(rope.rotate(rope.unrotate(x)), x, rtol=0, atol=1e-12)
    for layer in range(layers):
        torch.testing.assert_close(rope.rotate(x)[:, layer], rotate_plainly(rope, x[:, layer], layer))


def test_rotation_is_transformers_own():
    """Llama's module function on Llama's cos and sin, in float64; and textbook RoPE from theta, in plain Python."""
    loaded = family("llama")
    positions = torch.arange(40)[None]
    rope = rope_at(loaded, positions)
    x = torch.randn(1, 4, 3, 40, 12, dtype=torch.float64)
    cos, sin = loaded.model.model.rotary_emb(x.float(), positions)
    expected, _ = modeling_llama.apply_rotary_pos_emb(x[0], x[0], cos.double(), sin.double())
    torch.testing.assert_close(rope.rotate(x)[0], expected, rtol=0, atol=1e-12)

    textbook = torch.zeros_like(x)
    for position in range(40):
        for dim in range(6):
            angle = position * 10_000.0 ** (-2 * dim / 12)
            a, b = x[..., position, dim], x[..., position, dim + 6]
            textbook[..., position, dim] = a * math.cos(angle) - b * math.sin(angle)
            textbook[..., position, dim + 6] = b * math.cos(angle) + a * math.sin(angle)
    torch.testing.assert_close(rope.rotate(x), textbook, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ROTARY)
def test_unrotated_keys_are_the_ones_the_model_rotated(name, monkeypatch):
    """Listen in on the family's own function: what goes in must be what unrotate gives back."""
    loaded = family(name)
    attention = next(m for m in loaded.model.modules() if type(m).__name__.endswith("Attention"))
    module = sys.modules[type(attention).__module__]
    original = module.apply_rotary_pos_emb
    before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def listening(q, k, *args, **kwargs):
        before.append((q.clone(), k.clone()))
        return original(q, k, *args, **kwargs)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", listening)
    ids = ids_of()
    trace = capture_ids(
        loaded, ids.repeat(2, 1), position_ids=torch.stack([torch.arange(ids.shape[1])] * 2) + 3
    )

    q, k = trace.queries("pre_rope"), trace.keys("pre_rope")
    rotated = [layer for layer in range(4) if name not in ("smollm3", "cohere2") or layer % 2 == 0]
    assert len(before) == len(rotated)
    for layer, (true_q, true_k) in zip(rotated, before, strict=True):
        width = true_k.shape[-1]  # families that rotate a part hand over only that part
        torch.testing.assert_close(q[:, layer, ..., :width], true_q, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(k[:, layer, ..., :width], true_k, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(k[:, layer, ..., width:], trace.k[:, layer, ..., width:], rtol=0, atol=0)
    for layer in set(range(4)) - set(rotated):
        torch.testing.assert_close(k[:, layer], trace.k[:, layer], rtol=0, atol=0)


@pytest.mark.parametrize("offset", [1, 100, 4096])
@pytest.mark.parametrize("name", ["llama", "cohere", "gpt_neox", "gemma3_text", "smollm3", "llama_yarn"])
def test_keys_relocate(name, offset):
    """Un-rotated here and rotated there, keys are those of a real forward there."""
    loaded, ids = family(name), ids_of()
    here = torch.arange(ids.shape[1])[None]
    near = capture_ids(loaded, ids, position_ids=here)
    far = capture_ids(loaded, ids, position_ids=here + offset)
    moved = rope_at(loaded, here + offset).rotate(near.keys("pre_rope"))

    torch.testing.assert_close(moved[:, 0], far.k[:, 0], rtol=1e-5, atol=1e-5)
    # Deeper layers read attention whose angles float32 holds to 4,096 · 2⁻²⁴ only.
    assert (moved - far.k).norm() / far.k.norm() < 2e-3
    if name != "smollm3":
        assert (near.k - far.k).norm() / far.k.norm() > 0.1


@pytest.mark.parametrize("name", ROTARY)
def test_rope_at_is_the_rope_of_a_forward(name):
    loaded, ids = family(name), ids_of()
    positions = torch.arange(ids.shape[1])[None] * 3
    captured, computed = capture_ids(loaded, ids, position_ids=positions).rope, rope_at(loaded, positions)
    assert [captured.layer(i).kinds for i in range(4)] == [(0,)] * 4
    for layer in range(4):
        torch.testing.assert_close(captured.layer(layer).cos, computed.layer(layer).cos, rtol=0, atol=0)
        torch.testing.assert_close(captured.layer(layer).sin, computed.layer(layer).sin, rtol=0, atol=0)


def test_half_precision_keys_come_back():
    """In bfloat16 the rotation is undone in float32 with the very cos and sin the model used."""
    loaded = wrap_model(model("llama").to(torch.bfloat16), byte_tokenizer())
    full = capture_ids(family("llama"), ids_of())
    half = capture_ids(loaded, ids_of())
    assert half.k.dtype == torch.bfloat16
    assert half.keys("pre_rope").dtype == torch.float32
    error = (half.keys("pre_rope")[:, 0] - full.keys("pre_rope")[:, 0]).norm() / full.keys("pre_rope")[
        :, 0
    ].norm()
    assert error < 0.02


def test_parts_of_a_rope():
    rope = rope_at(family("gemma3_text"), torch.arange(20)[None].repeat(2, 1) * torch.tensor([[1], [2]]))
    x = torch.randn(2, 4, 3, 20, 16)
    whole = rope.rotate(x)
    torch.testing.assert_close(rope.first(7).rotate(x[:, :, :, :7]), whole[:, :, :, :7])
    torch.testing.assert_close(rope.layer(2).rotate(x[:, 2:3]), whole[:, 2:3])
    torch.testing.assert_close(rope.sample(1).rotate(x[1:]), whole[1:])
    assert not rope.alike
    assert rope.layer(2).alike
    repeated = rope.layer(2).over(3).rotate(x[:, 2:3].expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(repeated, whole[:, 2:3].expand(-1, 3, -1, -1, -1))
    with pytest.raises(ValueError, match="different ways"):
        rope.over(3)
    torch.testing.assert_close(rope.to("cpu").rotate(x), whole)
    one = rope_at(family("gemma3_text"), torch.arange(20)[None])
    torch.testing.assert_close(one.rotate(x)[0], whole[0])  # B = 1 holds for any batch
    for length in (0, 21):
        with pytest.raises(ValueError, match="20 positions"):
            rope.first(length)
    with pytest.raises(ValueError, match="does not fit"):
        rope.rotate(x[:, :3])


def test_models_without_rotation_say_so():
    for name in NO_ROPE:
        trace = capture_ids(family(name), ids_of())
        assert trace.rope is None
        with pytest.raises(
            ValueError, match=f"{name} has no rotary positions to undo; use key_space post_rope"
        ):
            trace.keys("pre_rope")
        assert trace.keys("post_rope") is trace.k
        with pytest.raises(RopeError, match="no rotary positions"):
            rope_at(family(name), torch.arange(4)[None])
    with pytest.raises(ValueError, match="neither pre_rope nor post_rope"):
        trace.keys("sideways")


def test_a_rotation_that_cannot_be_undone_is_not_trusted():
    """DeepSeek-V3 rotates the last dims of a head and Hunyuan normalises after rotating: both are seen through."""
    latent = {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    for built in (model("deepseek_v3", **latent), model("hunyuan_v1_dense", head_dim=12)):
        loaded = wrap_model(built, byte_tokenizer())
        assert loaded.rotary is None
        assert "does not explain" in loaded.rope_note
        assert capture_ids(loaded, ids_of()).rope is None


def test_only_rotations_of_pairs_are_probed():
    cos = torch.ones(1, 1, 6)

    def mixing(q, k, cos, sin):
        return q, k + sin * k.roll(1, -1) + cos * k.roll(2, -1)

    def one_way(q, k, cos, sin):
        return q, cos * k + sin * k.roll(1, -1)

    for function in (mixing, one_way):
        with pytest.raises(RopeError, match="pairs"):
            probe(function, cos, 6)
    with pytest.raises(RopeError, match="4 axes"):
        probe(mixing, cos[None], 6)
