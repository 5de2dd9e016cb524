"""Training end to end in miniature, and what a batch looks like."""

import json
import re
from functools import partial
from itertools import count

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvviz.bundled import train
from kvviz.bundled.evaluate import exact_match
from kvviz.bundled.problems import make_problem, parse_answer, problems
from kvviz.bundled.tokenizers import build_tokenizer
from kvviz.bundled.train import IGNORED, RECIPES, ProblemStream, collate, main

TINY = (
    "--steps 3 --batch-size 4 --evaluate-every 2 --selection-problems 3 --report-problems 4 --tokenizer-problems 50"
).split()


def test_three_steps_end_to_end(tmp_path, monkeypatch):
    # After three steps a model knows no end: it would write its 200 tokens each time.
    monkeypatch.setattr(train, "exact_match", partial(exact_match, max_new_tokens=10))
    main(["--role", "both", "--out", str(tmp_path), *TINY])
    card = json.loads((tmp_path / "card.json").read_text())
    assert list(card) == ["teacher", "student"]
    for role, entry in card.items():
        assert entry["steps_run"] == 3 * len(RECIPES[role].stages)
        assert entry["recipe"]["batch_size"] == 4
        assert entry["exact_match"]["n"] == 4
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / role, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / role, local_files_only=True)
        assert model.config.vocab_size == len(tokenizer)
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert {f.name for f in (tmp_path / role).iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
    text = (tmp_path / "CARD.md").read_text()
    assert "| exact match |" in text
    assert f"of 4 = {card['teacher']['exact_match']['share']:.1%}" in text
    # Training one of them again leaves the other on the card.
    main(["--role", "teacher", "--out", str(tmp_path), *TINY, "--steps", "1", "--seed", "5"])
    again = json.loads((tmp_path / "card.json").read_text())
    assert again["student"] == card["student"]
    assert again["teacher"]["recipe"]["seed"] == 5


def test_only_the_completion_is_learned_and_it_ends():
    recipe = RECIPES["student"]
    tokenizer = build_tokenizer("student", ["Question: 1 + 2\nReasoning:\nBrief:\n#### 3"], 64)
    stream = iter(ProblemStream(tokenizer, recipe, batches=2))
    rows = [next(stream) for _ in range(2 * recipe.batch_size)]
    told_rows = [row for row in rows if tokenizer.decode(row["input_ids"][1:]).startswith("Question")]
    assert 0.6 < len(told_rows) / len(rows) < 1
    for row in told_rows:
        ids, labels = row["input_ids"], row["labels"]
        asked = sum(label == IGNORED for label in labels)
        assert labels[asked:] == ids[asked:]
        prompt, told = tokenizer.decode(ids[1:asked]), tokenizer.decode(ids[asked:-1])
        assert prompt.endswith(("Reasoning:\n", "Brief:\n"))
        assert parse_answer(told) is not None
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer(prompt + told)["input_ids"] == ids[:-1]
    batch = collate(rows[:5], pad=tokenizer.pad_token_id)
    assert batch["input_ids"].shape == batch["labels"].shape
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=False):
        length = len(row["input_ids"])
        assert ids.tolist() == row["input_ids"] + [tokenizer.pad_token_id] * (len(ids) - length)
        assert labels[length:].eq(IGNORED).all()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_drill_teaches_the_results_and_nothing_else(role):
    tokenizer = build_tokenizer(role, ["12 + 35 = 47\n= 4"], 64)
    solved = problems(3, "train")
    row = ProblemStream(tokenizer, RECIPES[role]).drill([line for p in solved for line in p.brief])
    ids, labels = row["input_ids"], row["labels"]
    lines = tokenizer.decode(ids[1:]).split("\n")
    assert [line.replace(" ", "") for line in lines] == [line for p in solved for line in p.brief]
    assert lines[0].replace(" = ", "=") in solved[0].steps[0].replace(" = ", "=")
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    learned = "".join(tokenizer.decode([label]) for label in labels if label != IGNORED)
    assert learned.replace(" ", "") == "".join(line.split(" = ")[1] for line in lines)


def test_drills_come_from_training_problems_and_may_be_large_ones_only():
    recipe, tokenizer = RECIPES["teacher"], build_tokenizer("teacher", ["1 + 2"], 64)
    usual = ProblemStream(tokenizer, recipe, stage=0).drill_lines(iter(range(100)))
    assert usual == [line for seed in range(4) for line in make_problem(seed, "train").brief]
    last = len(recipe.stages) - 1
    assert recipe.stages[last].large_only
    large = ProblemStream(tokenizer, recipe, stage=last).drill_lines(count())
    assert len(large) >= 12
    for line in large:
        a, b = (int(n) for n in re.split("[-+]", line.split("=")[0]))
        assert max(a, b) >= 100


def test_a_batch_holds_texts_of_like_length():
    tokenizer = build_tokenizer("teacher", ["Question: 1 + 2"], 64)
    stream = iter(ProblemStream(tokenizer, RECIPES["teacher"]))
    size = RECIPES["teacher"].batch_size
    widths = [[len(next(stream)["input_ids"]) for _ in range(size)] for _ in range(25)]
    padded = sum(size * max(width) for width in widths)
    assert padded / sum(map(sum, widths)) < 1.1


def test_an_unknown_role_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--role", "assistant"])
    assert "assistant" in capsys.readouterr().err
