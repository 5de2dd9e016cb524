"""Attention of teacher and student against loops in float64: KL of every row, and both readings of the teacher."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvviz.align.aligner import MapProjectionAligner
from kvviz.align.alignment import align
from kvviz.align.mixed import head_weights
from kvviz.align.time import segment_warp
from kvviz.capture import capture
from kvviz.config import AlignmentConfig
from kvviz.diagnostics import attention as diagnostics
from kvviz.diagnostics.attention import (
    AttentionDifference,
    attention_difference,
    attention_pair,
    log_attention,
    worst_rows,
)
from kvviz.inspection import Inspection, Prompt, read
from kvviz.losses import causal_attention_kl
from kvviz.pair import wrap_model
from tests.families import byte_tokenizer, family, model

TEXT_T, TEXT_S = "seven geese crossed the road", "7 geese crossed"
CASES = [
    ("llama", "qwen3", "pre_rope"),
    ("gemma3_text", "gpt2", "post_rope"),
    ("gpt_oss", "llama", "pre_rope"),
]


def aligned(teacher, student, key_space, target, mode="structured"):
    config = AlignmentConfig(attention_target=target)
    trace_t, trace_s = capture(family(teacher), [TEXT_T]), capture(family(student), [TEXT_S])
    aligner = MapProjectionAligner(
        trace_t.geometry, trace_s.geometry, mode, init_uniform=False, share_layers=False, seed=0
    )
    ids_t = torch.zeros(trace_t.attention_mask.shape, dtype=torch.long)
    ids_s = torch.zeros(trace_s.attention_mask.shape, dtype=torch.long)
    ids_t[0, 10:], ids_s[0, 6:] = 1, 1
    return align(trace_t, trace_s, aligner, segment_warp(ids_t, ids_s.shape[1], ids_s), config, key_space)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def both(request):
    return {target: aligned(*request.param, target) for target in ("projected", "mixed")}


def softmax(logits):
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]


def attention_by_loops(trace, layer, sinks=False):
    """`[head, query, key]` from q, k, scaling and the mask, one row at a time."""
    q, k = trace.q[0, layer].double().numpy(), trace.k[0, layer].double().numpy()
    heads, length, _ = q.shape
    group = heads // len(k)
    allowed = trace.allowed(layer)[0]
    result = np.zeros((heads, length, length))
    for head in range(heads):
        for query in range(length):
            keys = [key for key in range(length) if allowed[query, key]]
            logits = [q[head, query] @ k[head // group, key] * trace.scaling[layer] for key in keys]
            cap = trace.softcap[layer]
            logits = logits if cap is None else [cap * math.tanh(value / cap) for value in logits]
            taken = [float(trace.sinks[layer][head])] if sinks and trace.sinks[layer] is not None else []
            result[head, query, keys] = softmax(logits + taken)[: len(keys)]
    return result


def mixed_by_loops(alignment, layer):
    """Teacher attention averaged over layers and heads by |weights|, then W · A · Cᵀ, masked and renormalised."""
    weights = head_weights(alignment.aligner.projector("q"), layer).double().abs().numpy()
    W = alignment.warp.matrix()[0].double().numpy()
    T_s, T_t = W.shape
    C = np.zeros((T_s, T_t))
    for t in range(T_t):
        for s in range(T_s):
            if W[:, t].sum() > 0:
                C[s, t] = W[s, t] / W[:, t].sum()
    allowed = alignment.trace_s.allowed(layer)[0].numpy()
    result, outside = np.zeros((len(weights), T_s, T_s)), np.zeros((len(weights), T_s))
    for head in range(len(weights)):
        mean = np.zeros((T_t, T_t))
        for source, share in enumerate(alignment.layer_matrix[layer].double().numpy()):
            if share > 0:
                teacher = attention_by_loops(alignment.trace_t, source, sinks=True)
                for other in range(weights.shape[1]):
                    mean += share * weights[head, other] / weights[head].sum() * teacher[other]
        carried = W @ mean @ C.T
        before = (W @ mean).sum(1)
        kept = np.where(allowed, carried, 0)
        result[head] = kept / kept.sum(1, keepdims=True)
        outside[head] = 1 - kept.sum(1) / before
    return result, outside


def kl_by_loops(target, student):
    rows = np.zeros(target.shape[:2])
    for head, query, key in np.ndindex(*target.shape):
        p = target[head, query, key]
        if p > 0:
            rows[head, query] += p * (math.log(p) - math.log(student[head, query, key]))
    return rows


def entropy(rows):
    return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)


def test_projected_target_against_loops(both):
    difference = attention_difference(both["projected"])
    projected = both["projected"].projected
    for layer in range(projected.geometry.layers):
        target = attention_by_loops(projected, layer)
        student = attention_by_loops(both["projected"].trace_s, layer)
        np.testing.assert_allclose(difference.rows[layer].numpy(), kl_by_loops(target, student), atol=2e-4)
        np.testing.assert_allclose(
            difference.entropy_teacher[layer].numpy(), entropy(target).mean(1), atol=1e-4
        )
        np.testing.assert_allclose(
            difference.entropy_student[layer].numpy(), entropy(student).mean(1), atol=1e-4
        )
    assert difference.outside == 0
    torch.testing.assert_close(difference.by_head, difference.rows.mean(-1))
    assert difference.mean == pytest.approx(float(difference.rows.mean()), rel=1e-5)


def test_mixed_target_against_loops(both):
    alignment = both["mixed"]
    difference = attention_difference(alignment)
    lost = []
    for layer in range(alignment.trace_s.geometry.layers):
        target, outside = mixed_by_loops(alignment, layer)
        got, _, got_outside = attention_pair(alignment, layer)
        np.testing.assert_allclose(got.numpy(), target, atol=1e-5)
        np.testing.assert_allclose(got_outside.numpy(), outside, atol=1e-5)
        student = attention_by_loops(alignment.trace_s, layer)
        np.testing.assert_allclose(difference.rows[layer].numpy(), kl_by_loops(target, student), atol=2e-4)
        lost.append(outside)
    assert difference.outside == pytest.approx(np.mean(lost), abs=1e-5)
    assert 0 < difference.outside < 1


def test_divergence_is_never_negative(both):
    for alignment in both.values():
        assert (attention_difference(alignment).rows > -1e-5).all()


def test_blocks_of_rows_make_no_difference(both, monkeypatch):
    trace = both["projected"].trace_s
    whole = log_attention(trace, 1)
    monkeypatch.setattr(diagnostics, "BLOCK", 4)
    torch.testing.assert_close(log_attention(trace, 1), whole)


@pytest.mark.parametrize("target", ["projected", "mixed"])
def test_padding_is_cut_off(target):
    """A longer text in the same batch pads the first; its figures stay what they were alone."""
    texts = ["nine geese", "nine geese and a duck crossed the long road"]
    loaded = wrap_model(model("llama", seed=3), byte_tokenizer())
    results = []
    for count in (1, 2):
        trace_t, trace_s = capture(family("llama"), texts[:count]), capture(loaded, texts[:count])
        aligner = MapProjectionAligner(trace_t.geometry, trace_s.geometry, "identity")
        ids = torch.where(trace_t.attention_mask, 0, -1)
        warp = segment_warp(ids, ids.shape[1], ids)
        config = AlignmentConfig(attention_target=target)
        results.append(attention_difference(align(trace_t, trace_s, aligner, warp, config, "pre_rope")))
    alone, padded = results
    torch.testing.assert_close(padded.rows, alone.rows, rtol=1e-3, atol=1e-4)
    assert padded.outside == pytest.approx(alone.outside, abs=1e-5)


def test_a_head_that_reads_nobody_has_no_divergence():
    alignment = aligned("llama", "qwen3", "pre_rope", "mixed")
    with torch.no_grad():
        alignment.aligner.projector("q").head_mixer[1, 2] = 0.0
    difference = attention_difference(alignment)
    assert difference.rows[1, 2].isnan().all()
    assert difference.by_head[1, 2].isnan()
    assert difference.entropy_teacher[1, 2].isnan()
    assert math.isfinite(difference.mean)
    assert math.isfinite(difference.outside)
    worst = worst_rows(difference, count=10_000)
    assert len(worst) == int((~difference.rows.isnan()).sum())
    assert not any(place[:2] == (1, 2) for place in worst)


def test_worst_rows_come_largest_first():
    rows = torch.tensor([[[0.1, 5.0, math.nan], [2.0, 0.0, 0.3]], [[4.0, 0.2, 0.1], [math.nan] * 3]])
    difference = AttentionDifference(rows, rows.nanmean(-1), 0.0, rows, rows, 0.0)
    assert worst_rows(difference, 3) == [
        (0, 0, 1, 5.0),
        (1, 0, 0, 4.0),
        (0, 1, 0, 2.0),
    ]
    assert len(worst_rows(difference, 100)) == 8
    assert worst_rows(replace(difference, rows=torch.full((1, 2, 3), math.nan)), 5) == []


def test_the_loss_and_the_page_agree_on_the_mixed_target():
    """StructuralKVLoss given `attention_target()` reports the KL that page 6 shows."""
    teacher, student = family("llama"), family("qwen2")
    config = AlignmentConfig(init="uniform", attention_target="mixed")
    inspection = Inspection(read(teacher, student, Prompt("3 + 4 = 7\n7 - 2 = 5\n#### 5")), config)
    trace, target = inspection.reading.trace_s, inspection.alignment.attention_target()
    kl = causal_attention_kl(
        trace.q, trace.k, None, None, trace.attention_mask, scaling=trace.scaling, t_attention=target
    )
    assert float(kl) == pytest.approx(inspection.attention.mean, rel=1e-4)
