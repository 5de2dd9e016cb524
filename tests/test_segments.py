"""Segments: what layouts give, and what no text, edit or URL can break."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.segments import (
    KINDS,
    MAX_NAME,
    MAX_SEGMENTS,
    Segment,
    add,
    from_spec,
    match_segments,
    merge,
    move,
    rename,
    split_text,
    to_spec,
    token_segments,
)

properties = settings(deadline=None, max_examples=100)
# Any text, and text made of the pieces that layouts are recognised by.
pieces = st.sampled_from(
    [
        "Question: ",
        "Q: ",
        "Reasoning:\n",
        "Brief:\n",
        "A: ",
        "#### 4",
        "<think>",
        "</think>",
        "\n",
        "\n\n",
        " ",
        "3 + 4 = 7",
    ]
    + [
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        "[INST] ",
        " [/INST]",
        "<s>",
        "שלום",
        "🧮",
        "\r\n",
    ]
)
texts = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=14).map("".join))
filled = texts.filter(bool)
names = st.one_of(
    st.text(max_size=100), st.sampled_from(["שלב ראשון", "étape 2", "🧮🏽", "<b>x</b>", "a;b:c%20", "step 1"])
)


def check(segments, text):
    """Contiguous, in order, covering, none empty (but the one of an empty text)."""
    assert segments[0].start == 0
    assert segments[-1].end == len(text)
    for before, after in zip(segments[:-1], segments[1:], strict=True):
        assert before.end == after.start
    assert all(s.start < s.end for s in segments) or (len(segments) == 1 and not text)
    assert all(s.kind in KINDS and 0 < len(s.name) <= MAX_NAME for s in segments)


def parts(text):
    return [(s.name, text[s.start : s.end]) for s in split_text(text)]


def kinds(text):
    return [s.kind for s in split_text(text)]


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["Reasoning:", "Brief:", "Answer:", "Solution:"])
def test_the_bundled_problems_and_gsm8k(label):
    text = f"Question: Tom has 3 boxes.\nHow many?\n{label}\n3 + 4 = 7\n\n7 * 2 = 14\n#### 14\n"
    assert parts(text) == [
        ("prompt", f"Question: Tom has 3 boxes.\nHow many?\n{label}\n"),
        ("step 1", "3 + 4 = 7\n\n"),
        ("step 2", "7 * 2 = 14\n"),
        ("answer", "#### 14\n"),
    ]
    assert kinds(text) == ["prompt", "step", "step", "answer"]


def test_an_answer_on_the_line_of_its_label():
    text = "Q: How many?\nA: She has 2.\n  Then 3.\n#### 5"
    assert parts(text) == [
        ("prompt", "Q: How many?\nA: "), ("step 1", "She has 2.\n"), ("step 2", "  Then 3.\n"), ("answer", "#### 5"),
    ]  # fmt: skip


def test_a_question_followed_by_its_lines():
    assert parts("How many?\n2 + 2 = 4\n#### 4") == [
        ("prompt", "How many?\n"), ("step 1", "2 + 2 = 4\n"), ("answer", "#### 4"),
    ]  # fmt: skip
    assert parts("Tom has 2.\nHow many?\n\n2 + 2 = 4\n1\n#### 4")[:2] == [
        ("prompt", "Tom has 2.\nHow many?\n\n"), ("step 1", "2 + 2 = 4\n"),
    ]  # fmt: skip


def test_unfinished_problems():
    assert parts("Question: How many?") == [("prompt", "Question: How many?")]
    assert parts("Question: How many?\nReasoning:\n") == [("prompt", "Question: How many?\nReasoning:\n")]
    assert parts("Question: How many?\nReasoning:\n3 + 4")[1:] == [("step 1", "3 + 4")]


def test_worked_examples_belong_to_the_prompt():
    example = "Question: a?\nAnswer:\n1\n#### 1\n\n"
    text = example + "Question: b?\nAnswer:\n2\n#### 2"
    assert parts(text) == [
        ("prompt", example + "Question: b?\nAnswer:\n"),
        ("step 1", "2\n"),
        ("answer", "#### 2"),
    ]


def test_think_tags():
    assert parts("Why?<think>\nfirst\nsecond\n</think>\n\nBecause.\nReally.") == [
        ("prompt", "Why?<think>\n"), ("step 1", "first\n"), ("step 2", "second\n"),
        ("answer", "</think>\n\nBecause.\nReally."),
    ]  # fmt: skip
    paragraphs = parts("Why?<think>a\nb\n\nc</think>d")
    assert paragraphs[1:] == [("step 1", "a\nb\n\n"), ("step 2", "c"), ("answer", "</think>d")]
    assert parts("Why?<think>a") == [("prompt", "Why?<think>"), ("step 1", "a")]
    assert parts("Why?<think></think>b") == [("prompt", "Why?<think>"), ("answer", "</think>b")]


@pytest.mark.parametrize(
    ("system", "user", "assistant", "end"),
    [
        ("<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
        ("<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>\n"),
        ("<start_of_turn>system\n", "<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
        *[
            [f"<|start_header_id|>{r}<|end_header_id|>\n\n" for r in ("system", "user", "assistant")]
            + ["<|eot_id|>"]
        ],
    ],
)
def test_chat_roles(system, user, assistant, end):
    text = f"<bos>{system}Be brief.{end}{user}Why?{end}{assistant}one\ntwo\n#### 3{end}{user}And?{end}{assistant}Yes.{end}"
    assert parts(text) == [
        ("system", f"<bos>{system}Be brief.{end}"),
        ("user", f"{user}Why?{end}{assistant}"),
        ("step 1", "one\n"),
        ("step 2", "two\n"),
        ("answer", f"#### 3{end}"),
        ("user 2", f"{user}And?{end}{assistant}"),
        ("answer 2", f"Yes.{end}"),
    ]
    assert kinds(text) == ["prompt", "prompt", "step", "step", "answer", "prompt", "answer"]


def test_inst_markers_thinking_replies_and_text_before_the_first_turn():
    assert parts("<s>[INST] Why? [/INST] <think>a\nb</think>c</s>") == [
        ("user", "<s>[INST] Why? [/INST] <think>"), ("step 1", "a\n"), ("step 2", "b"), ("answer", "</think>c</s>"),
    ]  # fmt: skip
    # Where the template has opened the thinking, only its end is in the reply.
    assert parts("<|user|>Why?<|assistant|>a\nb</think>c")[1:] == [
        ("step 1", "a\n"), ("step 2", "b"), ("answer", "</think>c"),
    ]  # fmt: skip
    assert parts("Instructions.\n<|user|>Why?")[0] == ("prompt", "Instructions.\n")
    assert parts("<|assistant|>Hello") == [("prompt", "<|assistant|>"), ("answer", "Hello")]


def test_plain_text_by_paragraph_or_line():
    assert parts("a\nb\n\nc\n\n\n\nd") == [
        ("paragraph 1", "a\nb\n\n"),
        ("paragraph 2", "c\n\n\n\n"),
        ("paragraph 3", "d"),
    ]
    assert parts("a\n b\n") == [("line 1", "a\n"), ("line 2", " b\n")]
    assert parts("hello") == [("text", "hello")]
    assert parts(" \n\t\n ") == [("text", " \n\t\n ")]
    assert split_text("") == [Segment("text", 0, 0, "text")]
    assert set(kinds("a\n\nb")) == {"text"}


@pytest.mark.parametrize(
    "text", ["line\n" * 99, "paragraph\n\n" * 99, "Q: a?\nA:\n" + "step\n" * 99 + "#### 7", "[INST]a" * 99]
)
def test_never_more_than_can_be_told_apart(text):
    segments = split_text(text)
    check(segments, text)
    assert len(segments) == MAX_SEGMENTS
    if "####" in text:
        assert text[segments[-1].start :] == "#### 7"


def test_markup_is_text():
    assert parts("<script>alert(1)</script>\n<b>x</b>")[0] == ("line 1", "<script>alert(1)</script>\n")


@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        " ",
        "x",
        "a\n",
        "a\n\n",
        "\n ",
        "[INST]",
        "<a> ",
        "<think>",
        "<think>a\n",
        "Question:\n",
        "\n####",
        "Q: A:\n",
        "A:",
        "🧮\r\n",
    ],
)
def test_ten_megabytes_do_not_hang(piece):
    text = piece * (10_000_000 // len(piece)) + "[INST]"
    start = time.process_time()
    segments = split_text(text)
    assert (
        time.process_time() - start < 20
    )  # linear: about two seconds on an idle core; quadratic would take days
    check(segments, text)


# --- properties -----------------------------------------------------------------------------------


@properties
@given(texts)
def test_any_text_is_covered(text):
    segments = split_text(text)
    check(segments, text)
    assert len(segments) <= MAX_SEGMENTS
    assert len({s.name for s in segments}) == len(segments)
    assert from_spec(to_spec(segments), text) == segments


@properties
@given(texts, st.data())
def test_every_edit_leaves_a_segmentation_that_the_url_can_hold(text, data):
    segments = split_text(text)
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(0, len(segments) - 1))
        anywhere = st.integers(-5, len(text) + 5)
        held, before = segments, tuple(segments)
        match data.draw(st.sampled_from(["move", "add", "merge", "rename"])):
            case "move":
                segments = move(segments, i, data.draw(anywhere))
                assert [s.name for s in segments] == [s.name for s in before]
            case "add":
                segments = add(segments, data.draw(anywhere), data.draw(names))
                assert 0 <= len(segments) - len(before) <= 1
            case "merge":
                segments = merge(segments, i)
                assert len(segments) == max(len(before) - 1, 1)
            case "rename":
                segments = rename(segments, i, data.draw(names))
                assert [(s.start, s.end) for s in segments] == [(s.start, s.end) for s in before]
        check(segments, text)
        spec = to_spec(segments)
        assert spec.isascii()
        assert from_spec(spec, text) == segments
        assert tuple(held) == before  # the input was not changed


def test_edits():
    text = "Question: a?\nReasoning:\n12345\n#### 5"
    prompt, step, answer = segments = split_text(text)
    assert move(segments, 1, 26)[:2] == [
        Segment("prompt", 0, 26, "prompt"), Segment("step 1", 26, step.end, "step"),
    ]  # fmt: skip
    assert move(segments, 0, 5) == segments
    assert move(segments, 2, -9)[2].start == step.start + 1
    assert move(segments, 2, 999)[2].start == len(text) - 1
    assert add(segments, 26, " second\n half ")[1:3] == [
        Segment("step 1", step.start, 26, "step"), Segment("second half", 26, step.end, "step"),
    ]  # fmt: skip
    assert add(segments, step.start, "sum") == [prompt, Segment("sum", step.start, step.end, "step"), answer]
    assert merge(segments, 0) == [Segment("prompt", 0, step.end, "prompt"), answer]
    assert merge(segments, 2) == [prompt, Segment("step 1", step.start, len(text), "step")]
    assert rename(segments, 1, "  ") == segments
    assert rename(segments, 1, "x" * 500)[1].name == "x" * MAX_NAME
    assert rename(segments, 1, "\ud800")[1].name == "?"
    assert split_text(text) == segments
    for edit in (lambda: move(segments, 3, 1), lambda: merge(segments, -1), lambda: rename(segments, 9, "x")):
        with pytest.raises(IndexError, match="no segment"):
            edit()


# --- the URL --------------------------------------------------------------------------------------


def test_the_spec_is_short_where_names_say_the_kind():
    text = "Question: a?\nReasoning:\n12345\n#### 5"
    assert to_spec(split_text(text)) == "prompt:0;step%201:24;answer:30"
    assert to_spec(rename(split_text(text), 1, "שלום; 🧮")).split(";")[1].endswith(":24:step")


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("", "segment 1"),
        ("prompt", "prompt"),
        ("prompt:0;step 1", "step 1"),
        ("prompt:0;:3", "segment 2"),
        ("prompt:0;%20:3", "segment 2"),
        ("prompt:0;a:x", "a:x"),
        ("prompt:0;a:-1", "a:-1"),
        ("prompt:0;a:1.5", "a:1.5"),
        ("prompt:0;a:٣", "segment 2"),
        ("prompt:0;a:3:verse", "verse"),
        ("prompt:0;a:3:step:x", "segment 2"),
        ("prompt:1", "prompt:1"),
        ("prompt:0;a:5;b:5", "b:5"),
        ("prompt:0;a:5;b:4", "b:4"),
        ("prompt:0;a:10", "10 characters"),
        ("prompt:0;a:99999999999999999999", "segment 2"),
        ("prompt:0;%FF:3", "%FF"),
        ("prompt:0;", "segment 2"),
    ],
)
def test_nonsense_specs_are_refused_by_part(spec, part):
    with pytest.raises(ValueError, match=part):
        from_spec(spec, "0123456789")


@properties
@given(st.text(max_size=40), texts)
def test_any_spec_gives_a_segmentation_or_a_value_error(spec, text):
    try:
        segments = from_spec(spec, text)
    except ValueError:
        return
    check(segments, text)


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_find_their_segment():
    segments = [
        Segment("prompt", 0, 4, "prompt"),
        Segment("step 1", 4, 8, "step"),
        Segment("answer", 8, 9, "answer"),
    ]
    spans = [(0, 0), (0, 0), (0, 3), (3, 5), (3, 6), (0, 0), (6, 8), (8, 9), (0, 0), (0, 0)]
    mask = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    ids = token_segments(segments, torch.tensor(spans), mask)
    # A border token belongs where its middle lies; bare tokens go with what stands before them, BOS with what follows.
    assert ids.tolist() == [-1, 0, 0, 1, 1, 1, 1, 2, 2, -1]
    assert ids.dtype == torch.long
    assert token_segments(segments, torch.zeros(2, 2, dtype=torch.long), torch.tensor([0, 1])).tolist() == [
        -1,
        0,
    ]
    assert token_segments(segments, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0)).tolist() == []
    with pytest.raises(ValueError, match="offsets"):
        token_segments(segments, torch.zeros(2, 2), torch.zeros(3))


@properties
@given(filled, st.data())
def test_token_ids_never_go_back_and_padding_has_none(text, data):
    segments = split_text(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20)) | {0, len(text)})
    spans = list(zip(cuts[:-1], cuts[1:], strict=True))
    for _ in range(data.draw(st.integers(0, 3))):
        spans.insert(data.draw(st.integers(0, len(spans))), (0, 0))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    offsets = torch.tensor([(0, 0)] * left + spans + [(0, 0)] * right)
    mask = torch.tensor([False] * left + [True] * len(spans) + [False] * right)
    ids = token_segments(segments, offsets, mask)
    assert (ids[~mask] == -1).all()
    assert (ids[mask].diff() >= 0).all()
    assert ids.max() < len(segments)
    for (start, end), i in zip(offsets.tolist(), ids.tolist(), strict=True):
        if i >= 0 and end > start:
            assert segments[i].start <= (start + end) // 2 < segments[i].end


# --- the other side -------------------------------------------------------------------------------


def sequence(kinds):
    return [Segment(f"{kind} {i}", i, i + 1, kind) for i, kind in enumerate(kinds)]


def of(letters):
    return sequence([{"p": "prompt", "s": "step", "a": "answer", "t": "text"}[letter] for letter in letters])


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ("pssa", "pssa", ([0, 1, 2, 3], [0, 1, 2, 3])),
        ("psssa", "pssa", ([0, 1, 1, 2, 3], [0, 1, 2, 3])),
        ("pssssa", "psa", ([0, 1, 1, 1, 1, 2], [0, 1, 2])),
        ("psa", "psssa", ([0, 1, 2], [0, 1, 1, 1, 2])),
        ("pssa", "pa", ([0, 1, 2, 3], [0, 3])),  # the steps have no partner
        ("pa", "psa", ([0, 2], [0, 1, 2])),
        ("ppsapa", "ppsapa", ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])),
        ("tt", "psa", ([0, 0], [0, 0, 0])),
        ("t", "ttt", ([0], [0, 0, 0])),
    ],
)
def test_matching(teacher, student, expected):
    assert match_segments(of(teacher), of(student)) == expected


@properties
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=12),
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=12),
)
def test_matching_keeps_reading_order_and_kinds(kinds_t, kinds_s):
    teacher, student = sequence(kinds_t), sequence(kinds_s)
    ids_t, ids_s = match_segments(teacher, student)
    assert len(ids_t) == len(teacher)
    assert len(ids_s) == len(student)
    assert ids_t == sorted(ids_t)
    assert ids_s == sorted(ids_s)
    shared = set(ids_t) & set(ids_s)
    assert shared  # some part corresponds, were it the whole
    if set(kinds_t) & set(kinds_s):
        for key in shared:
            matched = {
                s.kind for s, i in zip([*teacher, *student], [*ids_t, *ids_s], strict=True) if i == key
            }
            assert len(matched) == 1


@properties
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
def test_a_text_matches_itself_segment_by_segment(kinds_of):
    segments = sequence(kinds_of)
    expected = list(range(len(segments)))
    assert match_segments(segments, segments) == (expected, expected)
