"""What is measured on held-out examples: losses, R², spread of keys and values, exact match, errors head by head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvviz.align.aligner import Part
from kvviz.align.calibrate import states
from kvviz.bundled.evaluate import solve, wilson_interval
from kvviz.diagnostics.errors import HeadErrors, head_errors
from kvviz.distill.data import Example, final_answer
from kvviz.distill.objective import TERMS, Aligned, Objective, readable
from kvviz.losses import attention_kl_rows
from kvviz.pair import LoadedModel
from kvviz.trace import Space

PARTS_COMPARED: tuple[Part, ...] = ("k", "v")
SPREAD_WARNING = 0.5  # of the spread at the start: below, the student's cache is collapsing


Sums = dict[str, Tensor]  # by name, in float64 on the CPU; sums over disjoint examples add up


@torch.no_grad()
def add_up(objective: Objective, batches: Iterable[Mapping[str, Tensor]]) -> Sums:
    """One pass over batches: what `summary` needs, as sums that other processes' can be added to.

    Of each term (`ce_loss`, …) and both parts of the objective, the sum and, under `count.…`, what it is a sum over. Of K
    and V, in the key space of the run: `k.residual`, and of each channel (layer, head, dim) `k.sum` and `k.squares`.
    """
    sums: Sums = {}

    def add(name: str, value: Tensor) -> None:
        value = value.double().cpu()
        sums[name] = sums[name] + value if name in sums else value

    for batch in batches:
        terms, aligned = objective.compare(dict(batch), every=True)
        for name in (*TERMS, "loss_tokens", "loss_positions"):
            if not torch.isnan(terms[name]):
                over = "tokens" if name in ("ce_loss", "kd_loss", "loss_tokens") else "positions"
                add(name, terms[name] * terms[over])
                add(f"count.{name}", terms[over])
        if aligned is None:
            continue
        add("positions", terms["positions"])
        for part in PARTS_COMPARED:
            own, theirs = _rows(aligned, part, objective.key_space)
            add(f"{part}.residual", (own - theirs).square().sum())
            add(f"{part}.sum", own.sum(0))
            add(f"{part}.squares", own.square().sum(0))
    return sums


def merged(parts: Iterable[Sums]) -> Sums:
    """The sums of several processes added up; one that had no example adds nothing."""
    total: Sums = {}
    for sums in parts:
        for name, value in sums.items():
            total[name] = total[name] + value if name in total else value
    return total


def _rows(aligned: Aligned, part: Part, key_space: Space) -> tuple[Tensor, Tensor]:
    """The student's own states and the aligned teacher's at the valid positions, float64 `[position, …channel]`."""
    trace = aligned.trace
    own, theirs = states(trace, part, key_space), getattr(aligned, part)
    if part == "k" and key_space == "pre_rope" and trace.rope is not None:
        theirs = trace.rope.unrotate(theirs)
    own, theirs = (x.transpose(1, 3)[trace.attention_mask].double() for x in (own, theirs))
    return own, theirs


def summary(sums: Sums) -> dict[str, float]:
    """Means of the terms (`eval_ce_loss`, …), the objective (`eval_loss`), and for K and V spread and held-out R².

    k_spread, v_spread: standard deviation over positions of each channel of the student, averaged over channels.
    k_r2, v_r2: 1 − residual / variance of the aligned teacher against the student, over all layers and heads.
    """
    names = [*TERMS, "loss_tokens", "loss_positions"]
    means = {name: float(sums[name] / sums[f"count.{name}"].clamp(min=1)) for name in names if name in sums}
    found = {f"eval_{name}": means[name] for name in TERMS if name in means}
    found["eval_loss"] = means["loss_tokens"] + means["loss_positions"]
    for part in PARTS_COMPARED:
        if f"{part}.sum" not in sums:
            continue
        n = sums["positions"]
        variance = (sums[f"{part}.squares"] / n - (sums[f"{part}.sum"] / n).square()).clamp(min=0)
        found[f"{part}_spread"] = float(variance.sqrt().mean())
        if variance.sum() > 0:
            found[f"{part}_r2"] = 1 - float(sums[f"{part}.residual"] / n / variance.sum())
    return found


@dataclass(frozen=True)
class Answer:
    """What the student wrote for one held-out example, `index` in order."""

    index: int
    prompt: str
    expected: str
    written: str
    correct: bool


def answers(
    loaded: LoadedModel, examples: Sequence[tuple[int, Example]], max_new_tokens: int, batch_size: int = 100
) -> list[Answer]:
    """Let the model write the completion of each numbered example, greedily; right where it ends in the same answer."""
    parts = [example.side(student=True) for _, example in examples]
    with loaded.lock:
        texts = solve(
            loaded.model, loaded.tokenizer, [prompt for prompt, _ in parts], batch_size, max_new_tokens
        )
    return [
        Answer(index, prompt, expected, written, final_answer(written) == final_answer(expected))
        for (index, _), (prompt, expected), written in zip(examples, parts, texts, strict=True)
    ]


def accuracy(correct: int, n: int) -> dict[str, float]:
    """Share of right answers with Wilson's 95% interval; empty where nothing was asked."""
    if not n:
        return {}
    low, high = wilson_interval(correct, n)
    return {"accuracy": correct / n, "accuracy_low": low, "accuracy_high": high}


def collapsing(now: Mapping[str, float], start: Mapping[str, float]) -> list[str]:
    """Parts whose spread fell below half of its start, as sentences."""
    warnings = []
    for part, name in (("k", "keys"), ("v", "values")):
        before, after = start.get(f"{part}_spread", math.nan), now.get(f"{part}_spread", math.nan)
        if after < SPREAD_WARNING * before:
            warnings.append(
                f"The spread of the student's {name} fell to {after / before:.0%} of its start: a loss between caches "
                "can be made small by making the cache small. Lower the weights of the K, V and attention losses or the "
                "learning rate; freeze the aligner if it is trained along."
            )
    return warnings


@torch.no_grad()
def by_head(objective: Objective, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Errors of K and V and the attention KL of every head on one batch: `k.relative_error`, …, `attention_kl`, all `[layer, head]`."""
    _, aligned = objective.compare(dict(batch), every=True)
    if aligned is None:
        return {}
    trace = aligned.trace
    found: dict[str, Tensor] = {}
    for part in PARTS_COMPARED:
        errors: HeadErrors = head_errors(getattr(aligned, part), getattr(trace, part), trace.attention_mask)
        for name in ("relative_error", "cosine", "r2", "norm_ratio"):
            found[f"{part}.{name}"] = getattr(errors, name)
    rows, valid = attention_kl_rows(
        trace.q,
        trace.k,
        aligned.q,
        aligned.k,
        trace.attention_mask,
        scaling=trace.scaling,
        t_attention=aligned.attention,
        allowed=readable(trace),
    )
    found["attention_kl"] = rows.sum((0, 3)) / valid.sum((0, 3)).clamp(min=1)
    return {name: value.float().cpu().contiguous() for name, value in found.items()}
