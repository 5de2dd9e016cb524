"""The mean KL between two causal attentions with its gradient worked out on the way, block by block.

Of one row with scores a (teacher) and b (student), p = softmax(a), q = softmax(b), the divergence and its derivatives are

    KL(p ‖ q) = Σ p (a − b) − lse(a) + lse(b)        ∂KL/∂b = q − p        ∂KL/∂a = p · ((a − b) − Σ p (a − b))

so while a block's p and q are at hand, its share of every gradient is two more products. Nothing of size T² outlives its
block and nothing is computed twice, where checkpointing would run every block again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

# Query rows worked on at once, of one layer. Small blocks waste less above the diagonal, large ones fill a GPU.
CPU_BLOCK, BLOCK = 64, 256


class MeanKL(torch.autograd.Function):
    """Σ KL / rows over layers, heads and rows that count: a scalar in nats; gradients to all four tensors, once.

    s_q `[B, L, Hq, T, D]`, s_k `[B, L, Hkv, T, D]`; theirs: the teacher's queries with its keys t_k, or, where t_k is None, its
    probabilities `[B, L, Hq, T, T]` (masked, softened and renormalised here; they get no gradient). keep: bool `[B, T]`. allowed: bool
    `[B or 1, L or 1, T, T]` or None. factors: what each layer's scores are multiplied by. Padding must hold zeros.
    """

    @staticmethod
    def forward(
        ctx: Any,
        s_q: Tensor,
        s_k: Tensor,
        theirs: Tensor,
        t_k: Tensor | None,
        keep: Tensor,
        allowed: Tensor | None,
        factors: Sequence[float],
        temperature: float,
    ) -> Tensor:
        """The mean; see the class."""
        precision = torch.promote_types(s_q.dtype, torch.float32)
        inputs = (s_q, s_k, theirs, t_k)
        wanted = [
            needed and x is not None for needed, x in zip(ctx.needs_input_grad[:4], inputs, strict=True)
        ]
        if t_k is None:
            wanted[2] = False
        grads = [
            torch.zeros(x.shape, dtype=precision, device=x.device) if want and x is not None else None
            for want, x in zip(wanted, inputs, strict=True)
        ]
        size = CPU_BLOCK if s_q.device.type == "cpu" else BLOCK
        total = s_q.new_zeros((), dtype=precision)
        count = s_q.new_zeros((), dtype=torch.long)
        length, kv = s_q.shape[3], s_k.shape[2]
        for first in range(0, length, size):
            last = min(first + size, length)  # causal: no key beyond the block's last row
            # Layers see the same keys, but for those with windows.
            biases: dict[int, Tensor] = {}
            for layer, factor in enumerate(factors):
                seen = 0 if allowed is None else layer % allowed.shape[1]
                if seen not in biases:
                    biases[seen] = _bias(keep, allowed, seen, first, last, precision)
                bias = biases[seen]
                own_q = _grouped(s_q[:, layer, :, first:last], kv, precision)
                own_k = s_k[:, layer, :, :last].to(precision)
                student = _scores(own_q, own_k, bias, factor)
                if t_k is None:
                    teacher, sees = _given(
                        theirs[:, layer, :, first:last, :last], bias, temperature, precision
                    )
                    sees = rearrange(sees, "batch (kv group) query -> batch kv group query", kv=kv)
                    teacher = rearrange(
                        teacher, "batch (kv group) query key -> batch kv group query key", kv=kv
                    )
                    q, lse_q = _softmax(student)
                    kl = torch.special.entr(teacher).sum(-1).neg_() - (teacher * student).sum(-1) + lse_q
                    kl = kl.clamp_(min=0).masked_fill_(~sees, 0.0)
                    rows = sees
                else:
                    their_q = _grouped(theirs[:, layer, :, first:last], kv, precision)
                    their_k = t_k[:, layer, :, :last].to(precision)
                    scores = _scores(their_q, their_k, bias, factor)
                    q, lse_q = _softmax(student)
                    teacher, lse_p = _softmax(scores)
                    difference = scores.sub_(student)
                    inner = (teacher * difference).sum(-1)
                    rows = (bias == 0).any(-1)[:, :, None].expand_as(inner)
                    # Rounding alone can bring a KL of zero below zero.
                    kl = (inner - lse_p + lse_q).clamp_(min=0).masked_fill_(~rows, 0.0)
                    if wanted[2] or wanted[3]:
                        slope = difference.sub_(inner[..., None]).mul_(teacher).mul_(rows[..., None])
                        _add_grads(grads[2], grads[3], slope, their_q, their_k, factor, layer, first, last)
                total += kl.sum()
                count += rows.sum()
                if wanted[0] or wanted[1]:
                    slope = q.sub_(teacher).mul_(rows[..., None])
                    _add_grads(grads[0], grads[1], slope, own_q, own_k, factor, layer, first, last)
        count = count.clamp(min=1)
        ctx.present = [grad is not None for grad in grads]
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.save_for_backward(*(grad.div_(count) for grad in grads if grad is not None))
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """What `forward` worked out, times the gradient of the mean."""
        saved = iter(ctx.saved_tensors)
        grads = [
            (next(saved) * upstream).to(dtype) if present else None
            for present, dtype in zip(ctx.present, ctx.dtypes, strict=True)
        ]
        return (*grads, None, None, None, None)


def _grouped(q: Tensor, kv: int, precision: torch.dtype) -> Tensor:
    return rearrange(q, "batch (kv group) query dim -> batch kv group query dim", kv=kv).to(precision)


def _scores(q: Tensor, k: Tensor, bias: Tensor, factor: float) -> Tensor:
    """`[batch, kv, group, query, key]`; the query heads of a group are rows of one product."""
    rows = rearrange(q, "batch kv group query dim -> batch kv (group query) dim") * factor
    scores = rearrange(
        rows @ k.mT, "batch kv (group query) key -> batch kv group query key", group=q.shape[2]
    )
    return scores.add_(bias[:, :, None])


def _bias(
    keep: Tensor, allowed: Tensor | None, seen: int, first: int, last: int, precision: torch.dtype
) -> Tensor:
    """What is added to a block's scores, `[batch, 1, query, key]`: 0, or a floor so low that scores vanish in it, yet finite."""
    query = torch.arange(first, last, device=keep.device)[:, None]
    key = torch.arange(last, device=keep.device)[None, :]
    visible = (key <= query) & keep[:, first:last, None] & keep[:, None, :last]
    if allowed is not None:
        visible = visible & allowed[:, seen, first:last, :last].to(keep.device)
    bias = torch.zeros(visible.shape, dtype=precision, device=keep.device)
    return bias.masked_fill_(~visible, torch.finfo(precision).min / 4)[:, None]


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """softmax and log Σ exp of the last axis; the largest score and its probability give the second without another exp."""
    probabilities = scores.softmax(-1)
    return probabilities, scores.amax(-1) - probabilities.amax(-1).log()


def _given(
    probabilities: Tensor, bias: Tensor, temperature: float, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A teacher's own probabilities where keys are visible, softened and renormalised, and which rows have mass."""
    held = torch.where((bias == 0) & (probabilities > 0), probabilities.to(precision), 0.0)
    softened = held if temperature == 1 else held.pow(1 / temperature)
    mass = softened.sum(-1, keepdim=True)
    return softened / torch.where(mass > 0, mass, 1.0), mass[..., 0] > 0


def _add_grads(
    grad_q: Tensor | None,
    grad_k: Tensor | None,
    slope: Tensor,
    q: Tensor,
    k: Tensor,
    factor: float,
    layer: int,
    first: int,
    last: int,
) -> None:
    """Add a block's share to the gradients of queries and keys, from the gradient of its scores."""
    rows = rearrange(slope, "batch kv group query key -> batch kv (group query) key")
    if grad_q is not None:
        found = rearrange(
            rows @ k, "batch kv (group query) dim -> batch (kv group) query dim", group=q.shape[2]
        )
        grad_q[:, layer, :, first:last].add_(found, alpha=factor)
    if grad_k is not None:
        queries = rearrange(q, "batch kv group query dim -> batch kv (group query) dim")
        grad_k[:, layer, :, :last].add_(rows.mT @ queries, alpha=factor)
