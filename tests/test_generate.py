"""Streamed writing is greedy writing: the same text as a plain argmax loop, and it can be stopped."""

import threading

import pytest
import torch

from kvviz.generate import stream_greedy
from kvviz.pair import wrap_model
from tests.families import byte_tokenizer, family, model

PROMPT = "Two apples"


def write_plainly(loaded, prompt, tokens):
    """The likeliest token, appended, over and over; no cache."""
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(tokens):
        with torch.no_grad():
            following = loaded.model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following[None, None]], dim=1)
        if following == loaded.tokenizer.eos_token_id:
            break
    return loaded.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gpt2"])
def test_it_is_greedy(name):
    loaded = family(name)
    assert "".join(stream_greedy(loaded, PROMPT, 12)) == write_plainly(loaded, PROMPT, 12)


def test_stop_ends_it():
    loaded, stop = family("llama"), threading.Event()
    stop.set()
    assert len("".join(stream_greedy(loaded, PROMPT, 5000, stop)).encode()) < 50
    assert loaded.lock.acquire(timeout=5)
    loaded.lock.release()


def test_dropping_the_iterator_frees_the_model():
    loaded = family("llama")
    pieces = stream_greedy(loaded, PROMPT, 5000)
    next(pieces)
    pieces.close()
    assert loaded.lock.acquire(timeout=5)
    loaded.lock.release()


def test_it_ends_at_the_context():
    loaded = family("gpt2")
    pieces = "".join(stream_greedy(loaded, "a" * 250, 5000))
    assert pieces == write_plainly(loaded, "a" * 250, 256 - 251)
    with pytest.raises(ValueError, match="There is no room to write"):
        stream_greedy(loaded, "a" * 255, 8)
    with pytest.raises(ValueError, match="The prompt is empty"):
        stream_greedy(loaded, "", 8)


def test_an_error_while_writing_is_raised_to_the_reader(monkeypatch):
    loaded = wrap_model(model("llama"), byte_tokenizer())

    def fail(*args, **kwargs):
        raise RuntimeError("out of everything")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of everything"):
        list(stream_greedy(loaded, PROMPT, 8))
    assert loaded.lock.acquire(timeout=5)
    loaded.lock.release()
