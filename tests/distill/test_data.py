"""Examples from everywhere, and what is wrong with them by file and line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvviz.distill.config import DistillConfig
from kvviz.distill.data import DataError, final_answer, load_data


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return DistillConfig(data=str(path))


def good(n=20):
    return [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(n)]


def test_gsm8k_lines_are_split_into_disjoint_parts(tmp_path):
    data = load_data(write(tmp_path / "x.jsonl", good(200)))
    train = [data.train(i) for i in range(data.train_size)]
    assert len(train) + len(data.evaluation) == 200
    assert 5 <= len(data.evaluation) <= 50
    assert not {e.prompt for e in train} & {e.prompt for e in data.evaluation}
    assert train[0].answer == str(int(train[0].prompt.split()[3]) + 1)


def test_the_split_is_the_same_whatever_the_order(tmp_path):
    rows = good(60)
    one = load_data(write(tmp_path / "a.jsonl", rows))
    other = load_data(write(tmp_path / "b.jsonl", rows[::-1]))
    assert {e.prompt for e in one.evaluation} == {e.prompt for e in other.evaluation}


def test_prompt_and_completion_are_taken_as_they_are(tmp_path):
    data = load_data(
        write(tmp_path / "x.jsonl", [{"prompt": f"{i}?", "completion": f" {i}!"} for i in range(30)])
    )
    assert data.train(0).text.endswith("!")
    assert data.train(0).prompt.endswith("?")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"question": "a", "answer": \n', "line 4 is no JSON"),
        ("[1, 2]\n", "line 4 is no object"),
        ({"question": "a"}, "Its answer is missing"),
        ({"question": "a", "answer": "  "}, "Its answer is blank"),
        ({"question": 3, "answer": "b"}, "Its question is no text"),
        ({"text": "neither"}, "Its prompt is missing"),
        ('{"question": "\\ud800", "answer": "b"}\n', "surrogate"),
        ("[" * 100_000 + "\n", "line 4"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, named):
    rows = [*good(2), "\n", line, *good(20)]
    with pytest.raises(DataError, match=named) as error:
        load_data(write(tmp_path / "x.jsonl", rows))
    assert "line 4" in str(error.value)
    assert "x.jsonl" in str(error.value)


def test_too_few_or_alike_examples_are_refused(tmp_path):
    with pytest.raises(DataError, match="too few"):
        load_data(write(tmp_path / "few.jsonl", good(9)))
    same = [{"prompt": "one", "completion": str(i)} for i in range(30)]
    with pytest.raises(DataError, match="same prompt"):
        load_data(write(tmp_path / "same.jsonl", same))


def test_few_prompts_still_leave_some_held_out(tmp_path):
    rows = [{"prompt": f"p{i % 3}", "completion": str(i)} for i in range(30)]
    data = load_data(write(tmp_path / "x.jsonl", rows))
    assert data.evaluation
    assert data.train_size


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="No file has this path"):
        load_data(DistillConfig(data=str(tmp_path / "none.jsonl")))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_data(DistillConfig(data=str(tmp_path / "binary.jsonl")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="could not be loaded"):
        load_data(DistillConfig(data=str(tmp_path / "folder")))


def test_a_folder_saved_by_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list(good(40))
    table.save_to_disk(str(tmp_path / "table"))
    DatasetDict(train=table, test=table.select(range(3))).save_to_disk(str(tmp_path / "splits"))
    sizes = [load_data(DistillConfig(data=str(tmp_path / name))).train_size for name in ("table", "splits")]
    assert sizes[0] == sizes[1] > 20


def test_the_students_own_completions(tmp_path):
    rows = [row | {"student_answer": "short\n#### 1"} for row in good(20)]
    config = write(tmp_path / "x.jsonl", rows).with_settings(["student_reads=brief"])
    assert load_data(config).train(0).side(student=True)[1] == "short\n#### 1"
    with pytest.raises(DataError, match="student_answer is missing"):
        load_data(write(tmp_path / "y.jsonl", good(20)).with_settings(["student_reads=brief"]))


def test_bundled_problems_differ_by_seed_and_are_never_held_out():
    one, other = (load_data(DistillConfig(seed=seed, eval_examples=50)) for seed in (0, 1))
    assert one.evaluation == other.evaluation
    assert one.train(0) != other.train(0)
    held = {example.prompt for example in one.evaluation}
    assert not held & {one.train(i).prompt for i in range(200)}


@given(st.integers(-(10**9), 10**9))
def test_numbers_are_answers_however_they_are_written(number):
    assert final_answer(f"so\n#### {number:,}\n") == final_answer(f"####{number}.") == str(number)


def test_a_text_without_a_mark_is_its_own_answer():
    assert final_answer(" Paris \n") == "Paris"
    assert final_answer("  ") is None
