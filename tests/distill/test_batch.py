"""What each position is to predict, and how the two readings of an example are joined, against plain loops."""

import pytest
import torch

from kvviz.align.text import text_warp
from kvviz.bundled.problems import problems
from kvviz.capture import encode
from kvviz.config import AlignmentConfig
from kvviz.distill.batch import IGNORED, Collator, next_tokens
from kvviz.distill.data import Example
from kvviz.pair import load_model


@pytest.fixture(scope="module")
def pair():
    return load_model("bundled:teacher"), load_model("bundled:student")


def some(n=4):
    return [Example(p.prompt, p.text[len(p.prompt) :]) for p in problems(n, "train", 3)]


def test_labels_spell_the_completion_and_the_end(pair):
    _, student = pair
    tokenizer = student.tokenizer
    for example in some():
        batch = Collator(student, None, AlignmentConfig(), 1024, True)([example])
        labels = batch["labels"][0]
        told = labels[labels != IGNORED].tolist()
        assert told[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(told[:-1]).strip() == example.completion.strip()
        # The first of them is predicted from the prompt's last token, which is all the model is given when it writes.
        first = int((labels != IGNORED).nonzero()[0])
        assert tokenizer(example.prompt)["input_ids"] == batch["input_ids"][0, : first + 1].tolist()


def test_a_text_that_is_cut_has_no_end(pair):
    _, student = pair
    example = some(1)[0]
    whole = student.tokenizer(example.text)["input_ids"]
    batch = Collator(student, None, AlignmentConfig(), len(whole) - 3, True)([example])
    labels = batch["labels"][0]
    assert labels[-1] == IGNORED
    assert student.tokenizer.eos_token_id not in labels.tolist()


def test_labels_by_a_plain_loop(pair):
    _, student = pair
    examples = some()
    parts = [(e.prompt, e.completion) for e in examples]
    encoding = encode(student, [a + b for a, b in parts])
    found = next_tokens(encoding, parts, student.tokenizer.eos_token_id)
    for row, (prompt, _) in enumerate(parts):
        length = int(encoding.attention_mask[row].sum())
        for position in range(found.shape[1]):
            expected = IGNORED
            if position == length - 1:
                expected = student.tokenizer.eos_token_id
            elif position < length - 1 and int(encoding.offsets[row, position + 1, 1]) > len(prompt):
                expected = int(encoding.input_ids[row, position + 1])
            assert int(found[row, position]) == expected, (row, position)


def test_the_same_text_is_joined_by_characters(pair):
    teacher, student = pair
    examples = some()
    batch = Collator(student, teacher, AlignmentConfig(), 1024, True)(examples)
    theirs, own = (encode(side, [e.text for e in examples]) for side in (teacher, student))
    warp = text_warp(theirs.offsets, theirs.attention_mask, own.offsets, own.attention_mask)
    assert torch.equal(batch["warp_index"], warp.index)
    assert torch.equal(batch["warp_weight"], warp.weight)


def test_a_brief_text_is_joined_segment_by_segment(pair):
    """The student's prompt reads the teacher's prompt, its steps the steps, its answer the answer, in every row."""
    teacher, student = pair
    chosen = problems(3, "train", 5)
    examples = [
        Example(p.prompt, p.text[len(p.prompt) :], p.brief_prompt, p.brief_text[len(p.brief_prompt) :])
        for p in chosen
    ]
    batch = Collator(student, teacher, AlignmentConfig(), 1024, False)(examples)
    theirs, own = encode(teacher, [p.text for p in chosen]), encode(student, [p.brief_text for p in chosen])
    for row, problem in enumerate(chosen):
        for position in range(int(own.attention_mask[row].sum())):
            reads = batch["warp_index"][row, position][batch["warp_weight"][row, position] > 0]
            mine = int(own.offsets[row, position].sum()) // 2
            middles = [int(theirs.offsets[row, at].sum()) // 2 for at in reads]
            answer_s, answer_t = problem.brief_text.rindex("####"), problem.text.rindex("####")
            if mine >= answer_s:
                assert all(middle >= answer_t for middle in middles)
            elif mine < len(problem.brief_prompt) - len("Brief:\n"):
                assert all(middle < len(problem.prompt) for middle in middles)
            else:
                assert all(middle < answer_t for middle in middles)
