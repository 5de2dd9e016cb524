"""Wilson's interval against published values and its definition; exact match against a model whose answers are known."""

from math import isclose, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvviz.bundled import path
from kvviz.bundled.evaluate import exact_match, solve, wilson_interval
from kvviz.bundled.problems import parse_answer, problems


def test_wilson_against_a_published_example():
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998),
    # table I, method 3: 81 of 263 gives 0.2553 to 0.3662; 15 of 148 gives 0.0624 to 0.1605;
    # 0 of 20 gives 0 to 0.1611; 1 of 29 gives 0.0061 to 0.1718.
    for correct, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        got = wilson_interval(correct, n)
        assert got == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000), st.data())
def test_the_ends_of_the_interval_are_where_the_score_test_just_rejects(n, data):
    correct = data.draw(st.integers(0, n))
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert isclose(abs(correct / n - end), 1.959964 * sqrt(end * (1 - end) / n), rel_tol=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_no_proportion_no_interval(correct, n):
    with pytest.raises(ValueError, match="proportion"):
        wilson_interval(correct, n)


@pytest.fixture(scope="module")
def student():
    return (
        AutoModelForCausalLM.from_pretrained(path("student"), local_files_only=True),
        AutoTokenizer.from_pretrained(path("student"), local_files_only=True),
    )


def test_batches_padded_on_the_left_write_what_one_prompt_alone_writes(student):
    model, tokenizer = student
    asked = problems(5, "heldout", 5)
    prompts = [p.prompt for p in asked]
    together = solve(model, tokenizer, prompts, batch_size=3)
    alone = []
    for prompt in prompts:  # greedy, one token at a time, no cache, no padding
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        while ids.shape[1] - start < 200 and ids[0, -1] != tokenizer.eos_token_id:
            with torch.inference_mode():
                following = model(ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, following[:, None]], dim=1)
        alone.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    assert together == alone
    right = sum(parse_answer(text) == p.answer for text, p in zip(alone, asked, strict=True))
    assert exact_match(model, tokenizer, asked, batch_size=2) == (right, 5)


def test_the_mode_of_the_model_is_left_as_it_was(student):
    model, tokenizer = student
    for training in (True, False):
        model.train(training)
        solve(model, tokenizer, ["Question: "], max_new_tokens=1)
        assert model.training is training


def test_a_tokenizer_that_cannot_pad_is_refused(student):
    class Bare:
        pad_token_id = None
        eos_token_id = None

    with pytest.raises(ValueError, match="padding"):
        solve(student[0], Bare(), ["x"])
