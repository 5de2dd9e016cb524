"""How the attention patterns differ: KL(teacher ‖ student) of every layer, head and row, in nats.

The teacher's side has two honest readings. `projected`: softmax of the aligned queries and keys. `mixed`: what
the teacher really attended to, averaged over layers and heads with the maps' normalised absolute weights and
carried to student time (rows by W, columns by the mass-conserving transpose of W), masked and renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvviz.align.alignment import Alignment
from kvviz.trace import Trace

BLOCK = 512  # Query rows at a time, so that a long text does not need T² of memory for every head at once.


@dataclass(frozen=True, eq=False)
class AttentionDifference:
    """KL(teacher ‖ student) of one text.

    rows: `[layer, head, position]` nats, NaN where the target has no mass to compare. by_head: `[layer, head]`, mean
    over rows. mean: over everything. entropy_teacher, entropy_student: `[layer, head]` nats, mean over the same rows.
    outside: share of the target's mass that fell where the student may not look (mixed only, else 0).
    """

    rows: Tensor
    by_head: Tensor
    mean: float
    entropy_teacher: Tensor
    entropy_student: Tensor
    outside: float


@torch.no_grad()
def attention_difference(alignment: Alignment) -> AttentionDifference:
    """Compare the aligned teacher's attention with the student's, all layers and heads, first sample of the batch."""
    rows, teacher, student, outside = [], [], [], []
    for layer in range(alignment.trace_s.geometry.layers):
        target, log_student, lost = attention_pair(alignment, layer)
        log_target = target.clamp_min(torch.finfo(target.dtype).tiny).log()
        log_finite = log_student.masked_fill(log_student == -torch.inf, 0.0)
        kl = (torch.xlogy(target, target) - target * log_finite).sum(-1)
        empty = target.sum(-1) == 0
        rows.append(kl.masked_fill(empty, torch.nan))
        teacher.append((-(target * log_target).sum(-1)).masked_fill(empty, torch.nan))
        student.append((-(log_student.exp() * log_finite).sum(-1)).masked_fill(empty, torch.nan))
        outside.append(lost)
    kl = torch.stack(rows)
    return AttentionDifference(
        rows=kl,
        by_head=kl.nanmean(-1),
        mean=float(kl.nanmean()),
        entropy_teacher=torch.stack(teacher).nanmean(-1),
        entropy_student=torch.stack(student).nanmean(-1),
        outside=float(torch.stack(outside).nanmean()),
    )


@torch.no_grad()
def attention_pair(alignment: Alignment, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """The target and the student of one layer, first sample, padding cut off.

    Returns:
        Target probabilities `[head, query, key]`, the student's log-probabilities (−inf where it may not look), and
        the share of each target row that fell outside, `[head, query]`.
    """
    valid = alignment.trace_s.attention_mask[0]
    log_student = log_attention(alignment.trace_s, layer)
    if alignment.config.attention_target == "mixed":
        target, outside = (part[0] for part in alignment.mixed_attention(layer))
    else:
        target = log_attention(alignment.projected, layer).exp()
        outside = target.new_zeros(target.shape[:-1])
    return target[:, valid][:, :, valid], log_student[:, valid][:, :, valid], outside[:, valid]


def log_attention(trace: Trace, layer: int) -> Tensor:
    """Log-probabilities `[head, query, key]` of the first sample; −inf where a key may not be read.

    What an attention sink takes is left out: rows are over keys, so that two models can be compared.
    """
    length = trace.q.shape[3]
    blocks = []
    for start in range(0, length, BLOCK):
        scores = trace.scores(layer, slice(start, start + BLOCK))[0]
        dead = (scores == -torch.inf).all(-1, keepdim=True)
        blocks.append(
            scores.masked_fill(dead, 0.0)
            .log_softmax(-1)
            .masked_fill(dead | (scores == -torch.inf), -torch.inf)
        )
    return torch.cat(blocks, dim=1)


def worst_rows(difference: AttentionDifference, count: int = 10) -> list[tuple[int, int, int, float]]:
    """The rows with the largest KL: (layer, head, position, nats), largest first; rows without a KL are left out."""
    flat = difference.rows.flatten()
    values, places = flat.nan_to_num(-1.0).topk(min(count, int((~flat.isnan()).sum())))
    return [
        (*(int(index) for index in torch.unravel_index(place, difference.rows.shape)), float(value))  # type: ignore[misc]
        for value, place in zip(values, places, strict=True)
    ]
