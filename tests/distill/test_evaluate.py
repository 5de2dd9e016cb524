"""Held-out figures against plain float64 loops over single texts."""

import math

import pytest
import torch

from kvviz.distill.config import DistillConfig
from kvviz.distill.evaluate import accuracy, add_up, answers, by_head, collapsing, merged, summary
from kvviz.distill.prepare import prepare


@pytest.fixture(scope="module")
def prepared():
    few = {"calibration_examples": 20, "eval_examples": 5, "device": "cpu"}
    found = prepare(DistillConfig.parse(few))
    found.student.model.eval()
    return found


def batches(prepared, sizes):
    examples, start = prepared.data.evaluation, 0
    for size in sizes:
        yield prepared.collator(examples[start : start + size])
        start += size


def test_sums_do_not_depend_on_how_examples_are_dealt(prepared):
    """All in one batch, one by one, and shared out over processes of which one has nothing."""
    together = summary(add_up(prepared.objective, batches(prepared, [5])))
    alone = summary(add_up(prepared.objective, batches(prepared, [1] * 5)))
    parts = [add_up(prepared.objective, [batch]) for batch in batches(prepared, [2, 3])]
    shared = summary(merged([*parts, add_up(prepared.objective, [])]))
    for name, value in together.items():
        assert alone[name] == pytest.approx(value, rel=1e-4), name
        assert shared[name] == pytest.approx(value, rel=1e-4), name


def test_spread_and_r2_by_a_plain_loop(prepared):
    rows = {"k": [], "v": []}
    for batch in batches(prepared, [1] * 5):
        with torch.no_grad():
            _, aligned = prepared.objective.compare(batch, every=True)
        trace = aligned.trace
        for part in rows:
            own = trace.keys("pre_rope") if part == "k" else trace.v
            theirs = trace.rope.unrotate(aligned.k) if part == "k" else aligned.v
            for position in range(own.shape[3]):
                rows[part].append((own[0, :, :, position].double(), theirs[0, :, :, position].double()))
    found = summary(add_up(prepared.objective, batches(prepared, [5])))
    for part, pairs in rows.items():
        own = torch.stack([a for a, _ in pairs])
        mean = own.mean(0)
        variance = sum((a - mean) ** 2 for a, _ in pairs) / len(pairs)
        residual = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
        total = sum(float(((a - mean) ** 2).sum()) for a, _ in pairs)
        assert found[f"{part}_spread"] == pytest.approx(float(variance.sqrt().mean()), rel=1e-4)
        assert found[f"{part}_r2"] == pytest.approx(1 - residual / total, rel=1e-3)


def test_errors_by_head_average_to_the_losses(prepared):
    batch = next(batches(prepared, [3]))
    found = by_head(prepared.objective, batch)
    with torch.no_grad():
        terms, _ = prepared.objective.compare(batch, every=True)
    for part in "kv":
        assert 1 - float(found[f"{part}.cosine"].mean()) == pytest.approx(
            float(terms[f"{part}_loss"]), rel=1e-4
        )
    assert float(found["attention_kl"].mean()) == pytest.approx(float(terms["attn_loss"]), rel=1e-4)


def test_answers_are_right_where_they_end_in_the_same_number(prepared):
    numbered = list(enumerate(prepared.data.evaluation))
    found = answers(prepared.student, numbered, 150)
    assert [answer.index for answer in found] == [0, 1, 2, 3, 4]
    for answer in found:
        ends = answer.written.partition("####")[2].split("\n")[0].strip()
        assert answer.correct == (ends == answer.expected.partition("####")[2].strip())
    none = answers(prepared.student, numbered, 1)
    assert not any(answer.correct for answer in none)


def test_accuracy_has_its_interval():
    found = accuracy(85, 200)
    assert found["accuracy"] == 0.425
    assert found["accuracy_low"] < 0.425 < found["accuracy_high"]
    assert accuracy(0, 0) == {}


def test_a_collapse_is_told():
    start = {"k_spread": 1.0, "v_spread": 0.5}
    assert collapsing({"k_spread": 0.6, "v_spread": 0.3}, start) == []
    told = collapsing({"k_spread": 0.49, "v_spread": 0.3}, start)
    assert len(told) == 1
    assert "keys" in told[0]
    assert "49%" in told[0]
    assert collapsing({"k_spread": math.nan}, start) == []
    assert collapsing({"k_spread": 0.1}, {}) == []
