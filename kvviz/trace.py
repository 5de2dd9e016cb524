"""Trace: what one model did with one batch of texts. Five axes, never flattened."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from kvviz.geometry import Geometry
from kvviz.rope import Rope

Space = Literal["pre_rope", "post_rope"]


@dataclass
class Trace:
    """Queries, keys and values of every layer, with all it takes to recompute the attention from them.

    Attributes:
        q: [B, L, Hq, T, D], k: [B, L, Hkv, T, D], v: [B, L, Hkv, T, Dv]; keys and queries as the cache holds
            them (after RoPE), in the model's dtype, where the model ran.
        attention_mask: bool [B, T], False at padding.
        geometry: shape of the model.
        scaling: factor on the scores, for each layer.
        masks: for each layer, bool [B or 1, 1, T, T] (True: may be read), or None for plain causal. Layers of
            one kind share one tensor.
        softcap: for each layer, the bound c of c·tanh(score / c), or None (Gemma 2).
        sinks: for each layer, a learned logit [Hq] that takes probability away from all keys, or None (gpt-oss).
        rope: rotation of each layer at each position; None where the model has none, or none that can be undone.
        offsets: int64 [B, T, 2], character span of each token in its text; (0, 0) at special tokens and padding.
        texts: the texts. tokens: readable text of each token, padding included. Empty where ids were captured.
        input_ids: int64 [B, T]. position_ids: int64 [B, T].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attention_mask: Tensor
    geometry: Geometry
    scaling: list[float]
    masks: list[Tensor | None]
    softcap: list[float | None]
    sinks: list[Tensor | None]
    rope: Rope | None
    input_ids: Tensor
    position_ids: Tensor
    offsets: Tensor
    texts: list[str] = field(default_factory=list)
    tokens: list[list[str]] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text, without padding."""
        return self.attention_mask.sum(1).tolist()

    def to(self, device: torch.device | str) -> Trace:
        """The same trace with every tensor on another device. Masks that layers share stay shared."""
        moved: dict[int, Tensor] = {}

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return moved.setdefault(id(value), value.to(device))
            if isinstance(value, Rope):
                return value.to(device)
            return [move(item) for item in value] if isinstance(value, list) else value

        return replace(self, **{entry.name: move(getattr(self, entry.name)) for entry in fields(self)})

    def allowed(self, layer: int, rows: slice | None = None) -> Tensor:
        """Which keys each query of a layer may read: bool [B, rows, T]. Nothing reads padding, padding reads nothing."""
        rows = rows or slice(None)
        length = self.q.shape[3]
        mask = self.masks[layer]
        if mask is None:
            position = torch.arange(length, device=self.q.device)
            mask = (position[:, None] >= position[None, :])[None, None]
        valid = self.attention_mask
        return mask[:, 0, rows] & valid[:, rows, None] & valid[:, None, :]

    def scores(self, layer: int, rows: slice | None = None) -> Tensor:
        """Logits of a layer's attention, float32 [B, Hq, rows, T], −inf where a key may not be read."""
        allowed = rearrange(self.allowed(layer, rows), "batch query key -> batch 1 query key")
        return self._logits(layer, rows).masked_fill(~allowed, -torch.inf)

    def attention(self, layer: int, rows: slice | None = None) -> Tensor:
        """Attention probabilities of a layer, float32 [B, Hq, rows, T]; zero rows at padding.

        `rows` takes a block of queries, so that a long text needs no T² of memory at once. Rows sum to 1, less
        what an attention sink takes.
        """
        allowed = rearrange(self.allowed(layer, rows), "batch query key -> batch 1 query key")
        logits = self._logits(layer, rows)
        # The lowest finite number and not −inf: a row with nothing to read must not turn its gradient into NaN.
        logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        sinks = self.sinks[layer]
        if sinks is None:
            probabilities = logits.softmax(dim=-1)
        else:
            batch, _, queries, _ = logits.shape
            sink = repeat(sinks.to(logits), "head -> batch head query 1", batch=batch, query=queries)
            probabilities = torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
        return probabilities.masked_fill(~allowed, 0.0)

    def _logits(self, layer: int, rows: slice | None) -> Tensor:
        """Scaled (and, in Gemma 2, softcapped) products of queries and keys, unmasked, in at least float32."""
        precision = torch.promote_types(self.q.dtype, torch.float32)
        q = self.q[:, layer, :, rows or slice(None)].to(precision)
        q = rearrange(q, "batch (kv group) query dim -> batch kv group query dim", kv=self.geometry.kv_heads)
        k = self.k[:, layer].to(precision)
        logits = einsum(q, k, "batch kv group query dim, batch kv key dim -> batch kv group query key")
        logits = (
            rearrange(logits, "batch kv group query key -> batch (kv group) query key") * self.scaling[layer]
        )
        cap = self.softcap[layer]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def keys(self, space: Space) -> Tensor:
        """Keys [B, L, Hkv, T, D] as the cache holds them (`post_rope`) or before rotation (`pre_rope`, float32).

        Raises:
            ValueError: `pre_rope` of a model whose keys are not rotated, or in no known way.
        """
        return self._in_space(self.k, space)

    def queries(self, space: Space) -> Tensor:
        """Queries [B, L, Hq, T, D], as `keys`."""
        return self._in_space(self.q, space)

    def _in_space(self, x: Tensor, space: Space) -> Tensor:
        rotation = self.rotation(space)
        return x if rotation is None else rotation.unrotate(x)

    def rotation(self, space: Space) -> Rope | None:
        """What is to be undone on these keys and queries to have them in a space; None where they are in it.

        Raises:
            ValueError: as `keys`.
        """
        if space == "post_rope":
            return None
        if space != "pre_rope":
            raise ValueError(f"key space {space!r} is neither pre_rope nor post_rope")
        if self.rope is None:
            name = self.geometry.name or "this model"
            raise ValueError(f"{name} has no rotary positions to undo; use key_space post_rope")
        return self.rope
