"""The mean KL between two causal attentions with its gradient worked out on the way, block by block.

Of one row with scores a (teacher) and b (student), p = softmax(a), q = softmax(b), the divergence and its derivatives are

    KL(p ‖ q) = Σ p (a − b) − lse(a) + lse(b)        ∂KL/∂b = q − p        ∂KL/∂a = p · ((a − b) − Σ p (a − b))

so while a block's p and q are at hand, its share of every gradient is two more products. Nothing of size T² outlives its
block and nothing is computed twice, where checkpointing would run every block again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

# Query rows worked on at once. Small blocks waste less above the diagonal, large ones fill a GPU.
CPU_BLOCK, BLOCK = 64, 256
# As many heads go together as make this many scores: on a CPU they should stay in its cache.
CPU_SCORES, SCORES = 2**18, 2**26


class MeanKL(torch.autograd.Function):
    """Σ KL / rows over layers, heads and rows that count: a scalar in nats; gradients to all four tensors, once.

    s_q `[B, L, Hq, T, D]`, s_k `[B, L, Hkv, T, D]`; theirs: the teacher's queries with its keys t_k, or, where t_k is None, its
    probabilities `[B, L, Hq, T, T]` (masked, softened and renormalised here; they get no gradient). keep: bool `[B, T]`; whatever
    stands elsewhere changes nothing. allowed: bool `[B or 1, L or 1, T, T]` or None. factors: what each layer's scores are
    multiplied by.
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
        texts = _texts(keep)
        # Only in a gap within a text what stands in padding could reach a product, NaN even.
        clear = keep if any(text.gaps for text in texts) else None
        precision = torch.promote_types(s_q.dtype, torch.float32)
        factor = torch.tensor(factors, dtype=precision, device=s_q.device)[:, None, None, None]
        student = _Side(s_q, s_k, factor, clear, ctx.needs_input_grad[:2])
        teacher = None if t_k is None else _Side(theirs, t_k, factor, clear, ctx.needs_input_grad[2:4])
        divergence = student.q.new_zeros(student.q.shape[:3])
        counts = torch.zeros_like(divergence, dtype=torch.bool)
        size = CPU_BLOCK if s_q.device.type == "cpu" else BLOCK
        for rows in (slice(first, first + size) for first in range(0, keep.shape[1], size)):
            bias = _bias(keep, allowed, rows, precision)
            counts.unflatten(1, s_q.shape[1:3])[..., rows] = (bias.amax(-1) == 0)[:, :, None]
            for block in _blocks(texts, rows, bias, s_q.shape[1], s_q.shape[2]):
                scores = student.scores(block)
                q, lse_q = _softmax(scores)
                if teacher is None:
                    given = rearrange(theirs[block.sample], "layer head query key -> (layer head) query key")
                    p, mass = _given(given[block.heads, block.rows, block.keys], block.bias, temperature)
                    kl = torch.special.entr(p).sum(-1).neg_() - (p * scores).sum(-1) + lse_q
                    counts[block.at_rows] = mass
                    q.mul_(mass[..., None])
                else:
                    difference = teacher.scores(block)
                    p, lse_p = _softmax(difference)
                    difference.sub_(scores)
                    inner = (p * difference).sum(-1)
                    kl = inner - lse_p + lse_q
                    if teacher.wanted:
                        teacher.add_grads(block, difference.sub_(inner[..., None]).mul_(p))
                divergence[block.at_rows] = kl
                # A row that sees nothing is all floor on both sides: there p = q, and it has no slope.
                if student.wanted:
                    student.add_grads(block, q.sub_(p))
        count = counts.sum().clamp(min=1)
        grads = [*student.grads(count), *((None, None) if teacher is None else teacher.grads(count))]
        ctx.present = [grad is not None for grad in grads]
        ctx.dtypes = [None if x is None else x.dtype for x in (s_q, s_k, theirs, t_k)]
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        # Rounding alone can bring a KL of zero below zero.
        return divergence.clamp_(min=0).masked_fill_(~counts, 0.0).sum() / count

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


class _Text(NamedTuple):
    """One sample of the batch: its tokens stand from `start` to before `stop`, with padding between them if it has gaps."""

    sample: int
    start: int
    stop: int
    gaps: bool


def _texts(keep: Tensor) -> list[_Text]:
    """The samples that hold anything, with the places of their tokens."""
    texts = []
    for sample, held in enumerate(keep.cpu()):
        places = held.nonzero().flatten().tolist()
        if places:
            start, stop = places[0], places[-1] + 1
            texts.append(_Text(sample, start, stop, len(places) < stop - start))
    return texts


class _Block(NamedTuple):
    """Some query rows of one text in some heads, and the keys they can see: from the text's start to the last of the rows.

    Heads are counted through the layers: head h of layer l is number l · Hq + h. bias: of its scores, `[head or 1, query, key]`.
    """

    sample: int
    heads: slice
    rows: slice
    keys: slice
    bias: Tensor

    @property
    def at_rows(self) -> tuple[int, slice, slice]:
        return self.sample, self.heads, self.rows

    @property
    def at_keys(self) -> tuple[int, slice, slice]:
        return self.sample, self.heads, self.keys


def _blocks(texts: Sequence[_Text], rows: slice, bias: Tensor, layers: int, heads: int) -> Iterator[_Block]:
    """The blocks of some rows. Texts one by one, so that the padding a batch gives the shorter ones is no work.

    bias: of these rows, as of `_bias`; heads: of a layer.
    """
    layer_of = torch.arange(layers, device=bias.device).repeat_interleave(heads)
    most = CPU_SCORES if bias.device.type == "cpu" else SCORES
    for text in texts:
        first, last = max(rows.start, text.start), min(rows.stop, text.stop)
        if first >= last:
            continue
        keys = slice(text.start, last)  # causal: no key beyond the block's last row
        own = bias[text.sample, :, first - rows.start : last - rows.start, keys]
        together = max(most // (own.shape[1] * own.shape[2]), 1)
        for head in range(0, layers * heads, together):
            some = slice(head, head + together)
            yield _Block(
                text.sample, some, slice(first, last), keys, own[layer_of[some]] if len(own) > 1 else own
            )


class _Side:
    """One model's queries and keys, one key head for each query head, in full precision; and their gradients as they add up.

    All `[B, (L Hq), T, D]`; the queries carry the factor of the scores.
    """

    def __init__(
        self, q: Tensor, k: Tensor, factor: Tensor, clear: Tensor | None, needed: Sequence[bool]
    ) -> None:
        """factor: `[L, 1, 1, 1]`; clear: bool `[B, T]`, zeros where it is False; needed: gradients of queries, of keys."""
        self.factor, self.group = factor, q.shape[2] // k.shape[2]
        if clear is not None:
            padding = ~rearrange(clear, "batch position -> batch 1 1 position 1")
            q, k = q.masked_fill(padding, 0.0), k.masked_fill(padding, 0.0)
        self.q = rearrange(q * factor, "batch layer head position dim -> batch (layer head) position dim")
        self.k = repeat(
            k.to(factor.dtype),
            "batch layer kv position dim -> batch (layer kv group) position dim",
            group=self.group,
        )
        self.grad_q = torch.zeros_like(self.q) if needed[0] else None
        self.grad_k = torch.zeros_like(self.k) if needed[1] else None

    @property
    def wanted(self) -> bool:
        """Whether anybody asks for a gradient of this side."""
        return self.grad_q is not None or self.grad_k is not None

    def scores(self, block: _Block) -> Tensor:
        """`[head, query, key]`."""
        return torch.baddbmm(block.bias, self.q[block.at_rows], self.k[block.at_keys].mT)

    def add_grads(self, block: _Block, slope: Tensor) -> None:
        """Add a block's share, from the gradient of its scores."""
        if self.grad_q is not None:
            self.grad_q[block.at_rows].add_(slope @ self.k[block.at_keys])
        if self.grad_k is not None:
            self.grad_k[block.at_keys].add_(slope.mT @ self.q[block.at_rows])

    def grads(self, count: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of the mean over so many rows: of all queries and of all keys, as these were given."""
        layers = len(self.factor)
        grad_q, grad_k = self.grad_q, self.grad_k
        if grad_q is not None:
            axes = "batch (layer head) position dim -> batch layer head position dim"
            grad_q = rearrange(grad_q, axes, layer=layers) * (self.factor / count)
        if grad_k is not None:
            axes = "batch (layer kv group) position dim -> batch layer kv position dim"
            grad_k = reduce(grad_k, axes, "sum", layer=layers, group=self.group).div_(count)
        return grad_q, grad_k


def _bias(keep: Tensor, allowed: Tensor | None, rows: slice, precision: torch.dtype) -> Tensor:
    """What is added to some rows' scores: 0, or a floor so low that scores vanish in it, yet finite.

    `[B, layer or 1, query, key]`, with the keys up to the last row.
    """
    query = torch.arange(keep.shape[1], device=keep.device)[rows, None]
    key = torch.arange(min(rows.stop, keep.shape[1]), device=keep.device)
    visible = ((key <= query) & keep[:, rows, None] & keep[:, None, : rows.stop])[:, None]
    if allowed is not None:
        visible = visible & allowed[:, :, rows, : rows.stop].to(keep.device)
    bias = torch.zeros(visible.shape, dtype=precision, device=keep.device)
    return bias.masked_fill_(~visible, torch.finfo(precision).min / 4)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """softmax and log Σ exp of the last axis; the largest score and its probability give the second without another exp."""
    probabilities = scores.softmax(-1)
    return probabilities, scores.amax(-1) - probabilities.amax(-1).log()


def _given(probabilities: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A teacher's own probabilities where keys are visible, softened and renormalised, and which rows have mass."""
    held = torch.where((bias == 0) & (probabilities > 0), probabilities.to(bias.dtype), 0.0)
    softened = held if temperature == 1 else held.pow(1 / temperature)
    mass = softened.sum(-1, keepdim=True)
    return softened / torch.where(mass > 0, mass, 1.0), mass[..., 0] > 0
