"""Both tokenizers: any unicode comes back, offsets point at the right characters, digits stand alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kvviz.bundled import examples, path

ROLES = ["teacher", "student"]
TOKENIZERS = {role: AutoTokenizer.from_pretrained(path(role), local_files_only=True) for role in ROLES}
# The three special tokens are not text when spelled out in a prompt; they have a test of their own.
TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: not any(special in text for special in ("<s>", "</s>", "<pad>"))
)


@pytest.mark.parametrize("role", ROLES)
@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back(role, text):
    tokenizer = TOKENIZERS[role]
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


@pytest.mark.parametrize("role", ROLES)
@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_offsets_cover_the_text_in_order(role, text):
    tokenizer = TOKENIZERS[role]
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = encoded["offset_mapping"][1:]
    assert encoded["offset_mapping"][0] == (0, 0)
    covered = set()
    assert spans == sorted(spans)
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        covered |= set(range(start, end))
    assert covered == set(range(len(text)))
    # A token that holds whole characters decodes to exactly those characters.
    starts = [start for start, _ in spans]
    for token, (start, end) in zip(encoded["input_ids"][1:], spans, strict=True):
        if text[start:end].isascii() and starts.count(start) == 1:
            assert tokenizer.decode([token]) == text[start:end]


@pytest.mark.parametrize("role", ROLES)
def test_emoji_and_right_to_left_text(role):
    text = "שלום 😀 مرحبا 12\u200f3 <script>alert('x')</script>"
    tokenizer = TOKENIZERS[role]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("role", ROLES)
def test_a_digit_is_a_token_of_its_own(role):
    for problem in examples():
        for token in TOKENIZERS[role].tokenize(problem.text + " 0123456789 007"):
            bare = token.removeprefix("Ġ")
            assert bare.isdigit() <= (len(bare) == 1)
            assert not any(c.isdigit() for c in token) or len(bare) == 1


@pytest.mark.parametrize("role", ROLES)
def test_special_tokens_and_no_chat_template(role):
    tokenizer = TOKENIZERS[role]
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(ids) == 3
    assert None not in ids
    assert tokenizer.chat_template is None
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 1024


def test_the_two_cut_the_same_text_differently():
    teacher, student = TOKENIZERS["teacher"], TOKENIZERS["student"]
    assert set(teacher.get_vocab()) != set(student.get_vocab())
    for problem in examples():
        short, long = len(teacher(problem.text)["input_ids"]), len(student(problem.text)["input_ids"])
        assert 1.1 * short < long <= 260
        assert len(student(problem.brief_text)["input_ids"]) < 0.9 * long
