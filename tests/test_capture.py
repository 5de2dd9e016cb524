"""Is a Trace what the model did? Attention recomputed from it is compared with transformers' eager attention."""

import threading

import pytest
import torch

from kvviz import intercept
from kvviz.capture import (
    PromptError,
    attention_agreement,
    attention_difference,
    capture,
    capture_ids,
    encode,
    trace_of,
)
from kvviz.intercept import recording
from kvviz.pair import wrap_model
from tests.families import FAMILIES, byte_tokenizer, family, model

TEXTS = ["A train leaves at 7, and so do I.", "Two apples.", "é🙂"]


def attention_plainly(trace, layer, batch, head):
    """Softmax of scaled q·k over the keys a query may read, in float64, one query at a time."""
    group = trace.geometry.heads // trace.geometry.kv_heads
    q = trace.q[batch, layer, head].double()
    k = trace.k[batch, layer, head // group].double()
    rows = torch.zeros(len(q), len(k), dtype=torch.float64)
    for t in range(len(q)):
        if not trace.attention_mask[batch, t]:
            continue
        readable = [s for s in range(t + 1) if trace.attention_mask[batch, s]]
        mask = trace.masks[layer]
        if mask is not None:
            readable = [s for s in readable if mask[min(batch, len(mask) - 1), 0, t, s]]
        scores = torch.stack([q[t] @ k[s] * trace.scaling[layer] for s in readable])
        rows[t, readable] = scores.softmax(0)
    return rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_attention_from_the_trace_is_the_models_own(name, side):
    """Padded batches, sliding windows, softcaps, sinks, partial and interleaved rotation: to 1e-4 in float32."""
    loaded = family(name)
    trace = capture(loaded, TEXTS, padding_side=side)
    assert attention_difference(loaded, trace) < 1e-4
    assert attention_agreement(loaded, TEXTS[0], max_tokens=12) < 1e-4
    # The comparison can fail: it sees a scale that is off by a tenth.
    trace.scaling = [1.1 * scaling for scaling in trace.scaling]
    assert attention_difference(loaded, trace) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_nothing(name):
    """Each text's keys and values are the same alone, left-padded and right-padded."""
    loaded = family(name)
    left, right = (capture(loaded, TEXTS, padding_side=side) for side in ("left", "right"))
    for index, text in enumerate(TEXTS):
        alone = capture(loaded, [text])
        for padded in (left, right):
            own = padded.attention_mask[index]
            torch.testing.assert_close(padded.k[index][:, :, own], alone.k[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(padded.v[index][:, :, own], alone.v[0], rtol=1e-3, atol=1e-4)
            assert torch.equal(padded.position_ids[index, own], alone.position_ids[0])
            assert [t for t, kept in zip(padded.tokens[index], own, strict=True) if kept] == alone.tokens[0]
            assert torch.equal(padded.offsets[index, own], alone.offsets[0])


@pytest.mark.parametrize("name", ["llama", "mistral", "olmo2"])
def test_attention_is_plain_softmax(name):
    trace = capture(family(name), TEXTS, padding_side="left")
    for layer, batch, head in [(0, 0, 0), (1, 1, 3), (3, 2, 1)]:
        expected = attention_plainly(trace, layer, batch, head)
        torch.testing.assert_close(trace.attention(layer)[batch, head].double(), expected, rtol=0, atol=1e-5)


def test_rows_of_attention_and_scores():
    trace = capture(family("gpt_oss"), TEXTS, padding_side="left")
    whole = trace.attention(1)
    torch.testing.assert_close(trace.attention(1, rows=slice(3, 9)), whole[:, :, 3:9])
    torch.testing.assert_close(trace.scores(1, rows=slice(3, 9)), trace.scores(1)[:, :, 3:9])
    # What all keys together keep beside the sink: e^(logsumexp of the scores) against e^sink.
    kept = (trace.scores(1).logsumexp(-1) - trace.sinks[1][:, None]).sigmoid()
    torch.testing.assert_close(whole.sum(-1), kept)
    assert kept[trace.attention_mask[:, None].expand(-1, 4, -1)].min() < 0.99
    assert torch.equal(trace.scores(1) == -torch.inf, ~trace.allowed(1)[:, None].expand(-1, 4, -1, -1))
    padding = ~trace.attention_mask
    assert whole.isfinite().all()
    assert (whole[padding[:, None].expand(-1, 4, -1)] == 0).all()
    assert (trace.allowed(1) == trace.allowed(1) & trace.attention_mask[:, None, :]).all()


def test_windows_are_in_the_mask_and_shared():
    trace = capture(family("gemma3_text"), [TEXTS[0]])
    sliding, full = trace.allowed(0)[0], trace.allowed(1)[0]
    length = len(full)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    assert torch.equal(full, causal)
    assert torch.equal(sliding, causal & ~causal.tril(-5))
    assert trace.masks[0] is trace.masks[2]
    assert capture(family("llama"), [TEXTS[0]]).masks == [None] * 4


def test_nothing_changes_while_nobody_records():
    """A model that runs on the interception gives bit for bit what it gives on sdpa."""
    ids = byte_tokenizer()(TEXTS[:1], return_tensors="pt").input_ids
    loaded, plain = family("qwen3"), model("qwen3")
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = plain(ids).logits
        assert torch.equal(loaded.model(ids).logits, expected)
        with recording(loaded.model):
            assert torch.equal(loaded.model(ids).logits, expected)
        assert not loaded.model.model.layers[0].self_attn._forward_pre_hooks


def test_threads_record_their_own_model():
    loaded = [family("llama"), family("mistral")]
    expected = [capture(one, TEXTS) for one in loaded]
    found: dict[int, list[bool]] = {0: [], 1: []}

    def work(index):
        for _ in range(8):
            trace = capture(loaded[index], TEXTS)
            found[index].append(torch.equal(trace.k, expected[index].k) and trace.k.shape[1] == 4)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [True] * 8, 1: [True] * 8}


def test_another_thread_running_the_same_model_is_not_recorded():
    loaded = family("llama")
    ids = byte_tokenizer()("abc", return_tensors="pt").input_ids
    with recording(loaded.model) as recorder:
        thread = threading.Thread(target=lambda: loaded.model(ids))
        thread.start()
        thread.join()
    assert recorder.calls == []
    assert recorder.position_embeddings == {}


def test_gradients_reach_the_weights_when_asked():
    loaded = wrap_model(model("gpt_oss"), byte_tokenizer())
    ids = byte_tokenizer()(TEXTS[0], return_tensors="pt").input_ids
    trace = capture_ids(loaded, ids, grad=True)
    (trace.keys("pre_rope").square().mean() + trace.attention(3).square().mean()).backward()
    attention = loaded.model.model.layers[3].self_attn
    for weight in (attention.k_proj.weight, attention.q_proj.weight, attention.sinks):
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.norm() > 0
    without = capture_ids(loaded, ids)
    assert not without.k.requires_grad
    assert not without.attention(0).requires_grad
    # Captured without a graph, it can still be the fixed side of a loss.
    scale = torch.ones((), requires_grad=True)
    (without.k * scale).square().sum().backward()
    assert scale.grad > 0


def test_gradients_stay_finite_with_padding():
    loaded = wrap_model(model("llama"), byte_tokenizer())
    encoding = encode(loaded, TEXTS, padding_side="left")
    trace = capture_ids(loaded, encoding.input_ids, encoding.attention_mask, grad=True)
    trace.attention(3).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loaded.model.parameters())


def test_a_training_step_can_be_recorded():
    loaded = wrap_model(model("llama"), byte_tokenizer())
    encoding = encode(loaded, TEXTS)
    ids, mask, positions = encoding.input_ids, encoding.attention_mask, encoding.position_ids
    with recording(loaded.model) as recorder:
        output = loaded.model(input_ids=ids, attention_mask=mask.long(), position_ids=positions)
    trace = trace_of(loaded, recorder, ids, mask, positions)
    assert output.logits.shape == (*ids.shape, 259)
    torch.testing.assert_close(trace.k.detach(), capture(loaded, TEXTS).k)


def test_eager_is_switched_back_after_an_error(monkeypatch):
    loaded = family("llama")
    trace = capture(loaded, [TEXTS[1]])

    def fail(*args, **kwargs):
        raise RuntimeError("the forward failed")

    monkeypatch.setattr(type(loaded.model.base_model), "forward", fail)
    with pytest.raises(RuntimeError, match="the forward failed"):
        attention_difference(loaded, trace)
    assert loaded.model.config._attn_implementation == intercept.NAME


def test_tokens_are_readable_and_offsets_point_at_them():
    text = "Hi <b>é</b> 🙂 שלום"
    trace = capture(family("llama"), [text, "x"])
    tokens, offsets = trace.tokens[0], trace.offsets[0].tolist()
    assert tokens[0] == "<bos>"
    assert offsets[0] == [0, 0]
    for token, (start, end) in zip(tokens[1:], offsets[1:], strict=True):
        assert token == text[start:end] != ""
    assert tokens.count("🙂") == 4  # one for each of its bytes
    assert trace.tokens[1] == ["<bos>", "x"] + ["<pad>"] * (len(tokens) - 2)
    assert trace.lengths == [len(tokens), 2]
    assert trace.texts == [text, "x"]


def test_max_length_cuts():
    trace = capture(family("llama"), ["abcdefgh", "xy" * 100_000], max_length=5)
    assert trace.tokens == [["<bos>", "a", "b", "c", "d"], ["<bos>", "x", "y", "x", "y"]]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "There is nothing to read"),
        ([""], "The prompt is empty"),
        (["fine", " \n\t"], "The prompt is empty"),
        (["a" * 300], "It has 301 tokens and the context of gpt2 is 256"),
        (["word " * 2_000_000], "It has 10,000,000 characters and the context of gpt2 is 256 tokens"),
        (["half \ud83d of a pair"], "Character 5 is half of a surrogate pair"),
    ],
)
def test_texts_that_cannot_be_read_say_why(texts, says):
    with pytest.raises(PromptError, match=says) as caught:
        capture(family("gpt2"), texts)
    assert all((caught.value.what, caught.value.why, caught.value.do))


def test_a_text_as_long_as_the_context_is_read():
    assert capture(family("gpt2"), ["a" * 255]).k.shape[3] == 256


def test_a_trace_moves_as_a_whole():
    """Every tensor of it, however deep, and masks that layers share stay shared."""
    trace = capture(family("gemma3_text"), ["seven geese crossed the road"])
    moved = trace.to("meta")
    tensors = [moved.q, moved.k, moved.v, moved.attention_mask, moved.input_ids, moved.position_ids]
    tensors += [moved.offsets, moved.rope.cos, moved.rope.sin, moved.rope.partner]
    tensors += [mask for mask in moved.masks if mask is not None]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len({id(mask) for mask in moved.masks}) == len({id(mask) for mask in trace.masks})
    assert moved.tokens == trace.tokens
    assert moved.scaling == trace.scaling
