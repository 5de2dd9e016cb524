"""The generator, checked by reading its text again with other code than the code that wrote it."""

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.bundled import examples
from kvviz.bundled.problems import make_problem, parse_answer, problems, split_of

SEEDS = st.integers(0, 2**40)
SPLITS = st.sampled_from(["train", "heldout"])
EQUATION = re.compile(r"(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)")
RESULT = {
    "+": lambda a, b: Fraction(a) + b,
    "-": lambda a, b: Fraction(a) - b,
    "*": lambda a, b: Fraction(a) * b,
    "/": lambda a, b: Fraction(a, b),
}


def equations(lines):
    """(a, sign, b, result) of each line; fails where a line has not exactly one."""
    found = [EQUATION.findall(line) for line in lines]
    assert all(len(one) == 1 for one in found), lines
    return [(int(a), sign, int(b), int(c)) for [(a, sign, b, c)] in found]


@given(SEEDS, SPLITS)
@settings(max_examples=150, deadline=None)
def test_every_step_is_right_and_in_range(seed, split):
    problem = make_problem(seed, split)
    steps = equations(problem.steps)
    assert 3 <= len(steps) <= 5
    assert steps == equations(problem.brief)
    for a, sign, b, result in steps:
        assert RESULT[sign](a, b) == result
        assert all(0 <= number <= 999 for number in (a, b, result))
        if sign in "*/":
            assert min(a, b) <= 9
        if sign == "*":
            assert max(a, b) <= 90
    assert steps[-1][-1] == problem.answer


@given(SEEDS, SPLITS)
@settings(max_examples=150, deadline=None)
def test_each_number_of_a_step_is_in_the_question_or_in_an_earlier_step(seed, split):
    problem = make_problem(seed, split)
    known = {int(n) for n in re.findall(r"\d+", problem.question)}
    for a, _, b, result in equations(problem.steps):
        assert {a, b} <= known
        known.add(result)


@given(SEEDS)
@settings(max_examples=80, deadline=None)
def test_both_forms_of_text(seed):
    problem = make_problem(seed, "train")
    lines = problem.text.split("\n")
    assert lines[0] == f"Question: {problem.question}"
    assert lines[1] == "Reasoning:"
    assert tuple(lines[2:-1]) == problem.steps
    assert lines[-1] == f"#### {problem.answer}"
    assert problem.text.startswith(problem.prompt)
    assert problem.brief_text.startswith(problem.brief_prompt)
    assert problem.brief_text.split("\n")[1:] == ["Brief:", *problem.brief, lines[-1]]
    assert len(problem.brief_text) < len(problem.text)
    assert parse_answer(problem.text) == parse_answer(problem.brief_text) == problem.answer
    assert not re.search(r"[{}]", problem.text)


@given(SEEDS, SPLITS)
@settings(max_examples=80, deadline=None)
def test_a_problem_is_decided_by_its_seed_and_belongs_to_its_split(seed, split):
    problem = make_problem(seed, split)
    assert problem == make_problem(seed, split)
    assert split_of(problem.question) == split


def test_the_splits_share_no_question_and_the_lists_are_varied():
    train, heldout = problems(2000, "train"), problems(300, "heldout")
    asked_train, asked_heldout = {p.question for p in train}, {p.question for p in heldout}
    assert len(asked_train) == 2000
    assert len(asked_heldout) == 300
    assert not asked_train & asked_heldout
    assert problems(5, "train", 1) != problems(5, "train", 2)
    signs = {sign for p in train for _, sign, _, _ in equations(p.steps)}
    assert signs == set("+-*/")
    assert {len(p.steps) for p in train} == {3, 4, 5}
    # Some questions hold numbers that no step uses, and results have one, two and three digits.
    unused = [
        {int(n) for n in re.findall(r"\d+", p.question)}
        - {x for e in equations(p.steps) for x in (e[0], e[2])}
        for p in train
    ]
    assert sum(map(bool, unused)) > 1000
    assert {len(str(p.answer)) for p in train} == {1, 2, 3}


def test_one_in_ten_questions_is_held_out():
    held = sum(split_of(f"question {i}") == "heldout" for i in range(20_000))
    assert abs(held / 20_000 - 0.1) < 0.01


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="test"):
        make_problem(0, "test")


def test_the_examples_are_held_out():
    assert len({p.question for p in examples()}) == 24
    assert all(split_of(p.question) == "heldout" for p in examples())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 47", 47),
        ("a\n####12\n#### 9", 12),
        ("#### -3.", -3),
        ("no answer 5", None),
        ("####", None),
        ("", None),
    ],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer
