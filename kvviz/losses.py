"""What a student is trained on: cosine distance of keys and values, and the KL of the attention they make.

The teacher's tensors are already in the student's geometry. Everything is computed in float32 (float64 for float64 input), whatever the
inputs and whatever autocast says: KL in bf16 comes out negative in half of the rows. Attention is worked through in blocks of
query rows, so memory grows with T and not with T².
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kvviz.mean_kl import MeanKL

# Query rows worked on at once, of one layer: the largest intermediate is [B, Hq, BLOCK, T].
BLOCK = 128
FIVE_AXES = "[B, L, H, T, D]"


class StructuralKVLoss(nn.Module):
    """alpha_k · (1 − cos K) + alpha_v · (1 − cos V) + alpha_attn · KL(teacher attention ‖ student attention).

    Each term is a mean (over valid positions, or over valid query rows), so none grows with layers, heads or length. KL is in nats, of
    softmax(scores / temperature), without the factor temperature² that some distillation losses carry.
    """

    def __init__(
        self, alpha_k: float = 1.0, alpha_v: float = 1.0, alpha_attn: float = 0.5, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.alpha_k, self.alpha_v, self.alpha_attn = alpha_k, alpha_v, alpha_attn
        self.temperature = temperature

    def forward(
        self,
        *,
        s_q: Tensor,
        s_k: Tensor,
        s_v: Tensor,
        t_q: Tensor,
        t_k: Tensor,
        t_v: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | Sequence[float] | None = None,
        t_attention: Tensor | None = None,
        allowed: Tensor | None = None,
        every: bool = True,
    ) -> tuple[Tensor, dict[str, float]]:
        """q [B, L, Hq, T, D], k [B, L, Hkv, T, D], v [B, L, Hkv, T, Dv] of student (s_) and aligned teacher (t_), mask [B, T].

        every: False leaves out what has weight 0 (the attention is most of the work); its figure is then NaN.
        The other arguments are those of `causal_attention_kl`. Returns the total, with gradients to both sides (detach the
        teacher's tensors to keep them out), and the figures as floats: k_loss, v_loss, attn_loss, k_cos_sim, v_cos_sim, total_loss.
        Raises ValueError for shapes that do not fit.
        """
        left_out = s_k.new_full((), torch.nan, dtype=torch.float32)
        k_loss = cosine_loss(s_k, t_k, attention_mask) if every or self.alpha_k else left_out
        v_loss = cosine_loss(s_v, t_v, attention_mask) if every or self.alpha_v else left_out
        attn_loss = left_out
        if every or self.alpha_attn:
            attn_loss = causal_attention_kl(
                s_q,
                s_k,
                t_q,
                t_k,
                attention_mask,
                scaling=scaling,
                temperature=self.temperature,
                t_attention=t_attention,
                allowed=allowed,
            )
        weighted = ((self.alpha_k, k_loss), (self.alpha_v, v_loss), (self.alpha_attn, attn_loss))
        # What was left out must not reach the sum: 0 · NaN is NaN.
        total = torch.stack(
            [weight * term for weight, term in weighted if every or weight] or [0 * s_k.sum()]
        ).sum()
        figures = torch.stack([k_loss, v_loss, attn_loss, 1 - k_loss, 1 - v_loss, total]).detach().tolist()
        names = ("k_loss", "v_loss", "attn_loss", "k_cos_sim", "v_cos_sim", "total_loss")
        return total, dict(zip(names, figures, strict=True))


def cosine_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean of 1 − cosine over batch, layers, heads and valid positions of two [B, L, H, T, D]; a scalar, 0 where none is valid.

    A zero vector has cosine 0 with any other, and 1 with a zero vector. Raises ValueError for shapes that do not fit.
    """
    _check_pair(student, teacher, "keys or values")
    valid = _valid(student, attention_mask)
    with torch.autocast(student.device.type, enabled=False):
        (x, x_empty), (y, y_empty) = (_unit(_cleared(side, valid)) for side in (student, teacher))
        # Between unit vectors 1 − cos = ½‖x − y‖², which is never negative and is exactly 0 at equality.
        distance = 0.5 * (x - y).square().sum(dim=-1) + 0.5 * (x_empty ^ y_empty)
        positions = valid.sum() * student.shape[1] * student.shape[2]
        # Padding was cleared on both sides, so it adds nothing to the sum.
        return distance.sum() / positions.clamp(min=1)


def causal_attention_kl(
    s_q: Tensor,
    s_k: Tensor,
    t_q: Tensor | None,
    t_k: Tensor | None,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | Sequence[float] | None = None,
    temperature: float = 1.0,
    t_attention: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Mean of `attention_kl_rows` over the valid rows: a scalar in nats, 0 where no row is valid.

    A mean's gradient is worked out with its value, so a step costs one pass over the scores (`kvviz.mean_kl`); it has no second
    derivative. Only where t_attention itself wants a gradient, which it has in no run of ours, the rows are averaged.
    """
    if t_attention is not None and t_attention.requires_grad:
        rows, valid = attention_kl_rows(
            s_q,
            s_k,
            None,
            None,
            attention_mask,
            scaling=scaling,
            temperature=temperature,
            t_attention=t_attention,
            allowed=allowed,
        )
        return rows.sum() / valid.sum().clamp(min=1)
    scales = _check_attention(s_q, s_k, t_q, t_k, t_attention, allowed, scaling, temperature)
    keep = _valid(s_q, attention_mask)
    theirs, their_keys = (t_attention, None) if t_attention is not None else (t_q, t_k)
    with torch.autocast(s_q.device.type, enabled=False):
        return MeanKL.apply(
            s_q,
            s_k,
            theirs,
            their_keys,
            keep,
            allowed,
            [scale / temperature for scale in scales],
            temperature,
        )


def attention_kl_rows(
    s_q: Tensor,
    s_k: Tensor,
    t_q: Tensor | None,
    t_k: Tensor | None,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | Sequence[float] | None = None,
    temperature: float = 1.0,
    t_attention: Tensor | None = None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ student) of every row of causal attention, in nats, and which rows count: both [B, L, Hq, T].

    q [B, L, Hq, T, D] and k [B, L, Hkv, T, D], Hq a multiple of Hkv (query head h reads key head h // (Hq/Hkv)).
    scaling: what scores are multiplied by, one number or one a layer; 1/√D unless given. temperature divides the scores of both sides.
    t_attention [B, L, Hq, T, T]: the teacher's probabilities, in place of those of t_q and t_k (which may then be None); its rows are masked and
    renormalised. allowed: bool [B or 1, L or 1, T, T], keys that a query may see besides being causal (sliding windows).

    A row counts where its query is valid, it may see a key, and the teacher's row has mass there; elsewhere it is 0.
    Raises ValueError for shapes, scalings or a temperature that make no sense.
    """
    scales = _check_attention(s_q, s_k, t_q, t_k, t_attention, allowed, scaling, temperature)
    keep = _valid(s_q, attention_mask)
    # Clearing padding keeps what lies there, NaN even, out of every product of the backward pass.
    queries, keys = _cleared(s_q, keep).unbind(1), _cleared(s_k, keep).unbind(1)
    their_rows: tuple[Tensor, ...]
    their_keys: Sequence[Tensor | None]
    if t_attention is not None:
        their_rows, their_keys = t_attention.unbind(1), [None] * len(queries)
    else:
        their_rows, their_keys = (_cleared(x, keep).unbind(1) for x in (t_q, t_k) if x is not None)
    kl_layers, valid_layers = [], []
    for layer, scale in enumerate(scales):
        seen = None if allowed is None else allowed[:, layer % allowed.shape[1]]
        blocks = []
        # split and unbind rather than slices: their backward is one concatenation, not a full-size zero tensor a block.
        for number, (q, theirs) in enumerate(
            zip(queries[layer].split(BLOCK, dim=2), their_rows[layer].split(BLOCK, dim=2), strict=True)
        ):
            # Which keys a row sees is worked out inside: held for every block it would be T² booleans a layer.
            first = number * BLOCK
            arguments = (q, keys[layer], theirs, their_keys[layer], keep, seen, first, scale, temperature)
            if torch.is_grad_enabled():
                blocks.append(checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                blocks.append(_block(*arguments))
        kl_layers.append(torch.cat([kl for kl, _ in blocks], dim=2))
        valid_layers.append(torch.cat([valid for _, valid in blocks], dim=2))
    return torch.stack(kl_layers, dim=1), torch.stack(valid_layers, dim=1)


def _block(
    s_q: Tensor,
    s_k: Tensor,
    theirs: Tensor,
    t_k: Tensor | None,
    keep: Tensor,
    allowed: Tensor | None,
    first: int,
    scale: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """KL [B, Hq, rows] and its validity for one layer's block of query rows that begins at position `first`.

    `theirs` holds the teacher's queries, or, where t_k is None, its probabilities.
    """
    with torch.autocast(s_q.device.type, enabled=False):
        keys = first + s_q.shape[2]  # causal: none beyond the block's last row
        visible = _visible(keep, slice(first, keys), allowed)
        student = _log_attention(s_q, s_k[:, :, :keys], visible, scale / temperature)
        if t_k is None:
            given = theirs[..., :keys].to(student.dtype)
            held = visible & (given > 0)
            logits = torch.where(held, given, torch.ones_like(given)).log() / temperature
            teacher = logits.masked_fill(~held, _floor(logits)).log_softmax(dim=-1)
            valid = held.any(dim=-1)
        else:
            teacher = _log_attention(theirs, t_k[:, :, :keys], visible, scale / temperature)
            valid = visible.any(dim=-1).expand(student.shape[:-1])
        kl = (teacher.exp() * (teacher - student)).sum(dim=-1)
        # Rounding alone can bring a KL of zero below zero.
        return kl.clamp(min=0).masked_fill(~valid, 0.0), valid


def _log_attention(q: Tensor, k: Tensor, visible: Tensor, scale: float) -> Tensor:
    """log softmax of the scores, [B, Hq, rows, keys]; a hidden key gets a floor that is finite, so that 0 · log 0 stays 0."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = rearrange(
        q.to(dtype) * scale, "batch (kv group) query dim -> batch kv group query dim", kv=k.shape[1]
    )
    pattern = "batch kv group query dim, batch kv key dim -> batch kv group query key"
    scores = einsum(grouped, k.to(dtype), pattern)
    scores = rearrange(scores, "batch kv group query key -> batch (kv group) query key")
    return scores.masked_fill(~visible, _floor(scores)).log_softmax(dim=-1)


def _floor(x: Tensor) -> float:
    return torch.finfo(x.dtype).min / 4


def _visible(keep: Tensor, rows: slice, allowed: Tensor | None) -> Tensor:
    """Which keys up to the block's last row each of its rows may see: bool [B, 1, rows, keys]."""
    query = torch.arange(rows.start, rows.stop, device=keep.device)[:, None]
    key = torch.arange(rows.stop, device=keep.device)[None, :]
    visible = (key <= query) & keep[:, rows, None] & keep[:, None, : rows.stop]
    if allowed is not None:
        visible = visible & allowed[:, rows, : rows.stop].to(keep.device)
    return visible[:, None]


def _valid(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mask [B, T] as bool on x's device."""
    shape = (x.shape[0], x.shape[3])
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=x.device)
    if attention_mask.shape != shape:
        raise ValueError(f"attention_mask must be {list(shape)}, got {list(attention_mask.shape)}")
    return attention_mask.to(x.device).bool()


def _cleared(x: Tensor, valid: Tensor) -> Tensor:
    return x.masked_fill(~rearrange(valid, "batch position -> batch 1 1 position 1"), 0.0)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x at length 1 along its last axis, in at least float32, and where it has no length (there it stays 0)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # A zero vector is divided by 1, not by something tiny, which would send its gradient to infinity.
    return x / length.masked_fill(length == 0, 1.0), length.squeeze(-1) == 0


def _scales(scaling: float | Sequence[float] | None, L: int, D: int) -> list[float]:
    if scaling is None:
        return [D**-0.5] * L
    if isinstance(scaling, int | float):
        return [float(scaling)] * L
    scales = [float(value) for value in scaling]
    if len(scales) != L:
        raise ValueError(f"scaling must be one number or one for each of {L} layers, got {len(scales)}")
    return scales


def _check_pair(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.ndim != 5 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher {what} must both be {FIVE_AXES} and alike, "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )


def _check_attention(
    s_q: Tensor,
    s_k: Tensor,
    t_q: Tensor | None,
    t_k: Tensor | None,
    t_attention: Tensor | None,
    allowed: Tensor | None,
    scaling: float | Sequence[float] | None,
    temperature: float,
) -> list[float]:
    """Raises ValueError for what does not go together; returns the factor on each layer's scores."""
    if t_attention is None and (t_q is None or t_k is None):
        raise ValueError("the teacher's attention needs t_q and t_k, or t_attention")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if t_q is not None:
        _check_pair(s_q, t_q, "queries")
    if t_k is not None:
        _check_pair(s_k, t_k, "keys")
    if s_q.ndim != 5 or s_k.ndim != 5:
        raise ValueError(f"queries and keys must be {FIVE_AXES}, got {list(s_q.shape)} and {list(s_k.shape)}")
    B, L, Hq, T, D = s_q.shape
    if (*s_k.shape[:2], *s_k.shape[3:]) != (B, L, T, D) or Hq % s_k.shape[2]:
        raise ValueError(f"queries {list(s_q.shape)} and keys {list(s_k.shape)} do not go together")
    if t_attention is not None and t_attention.shape != (B, L, Hq, T, T):
        raise ValueError(f"t_attention must be {[B, L, Hq, T, T]}, got {list(t_attention.shape)}")
    if allowed is not None and not (
        allowed.ndim == 4
        and allowed.shape[0] in (1, B)
        and allowed.shape[1] in (1, L)
        and allowed.shape[2:] == (T, T)
    ):
        raise ValueError(f"allowed must be [{B} or 1, {L} or 1, {T}, {T}], got {list(allowed.shape)}")
    return _scales(scaling, L, D)
