"""Capture: one forward of a model over a batch of texts, kept as a Trace."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvviz import intercept
from kvviz.checkup import rotary_pair
from kvviz.errors import PromptError
from kvviz.intercept import Call, Recorder, recording, run_backbone
from kvviz.pair import LoadedModel
from kvviz.rope import Rope
from kvviz.trace import Trace

__all__ = [
    "Encoding",
    "PromptError",
    "attention_agreement",
    "attention_difference",
    "capture",
    "capture_ids",
    "encode",
    "positions_of",
    "trace_of",
]

CHARACTERS_PER_TOKEN = 40  # no tokenizer packs more into a token on average: beyond, a text is refused unread


@dataclass
class Encoding:
    """Texts as one model reads them, padded: ids, mask, positions and offsets [B, T(, 2)], and readable tokens."""

    texts: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    offsets: Tensor
    tokens: list[list[str]]


def encode(
    loaded: LoadedModel,
    texts: list[str],
    *,
    max_length: int | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> Encoding:
    """Cut texts into a model's tokens, with the characters each token covers.

    Args:
        max_length: cut each text after so many tokens. Without it a text longer than the context is refused.

    Raises:
        PromptError: a text is empty, longer than the model's context, or no valid unicode.
    """
    if not texts:
        raise PromptError("There is nothing to read.", "No text was given.", "Give at least one text.")
    limit = min(max_length or loaded.context, loaded.context)
    texts = [_readable(text, loaded, limit, cut=max_length is not None) for text in texts]
    tokenizer = loaded.tokenizer
    with loaded.lock:  # a fast tokenizer keeps its padding and truncation settings in itself
        encoded = tokenizer(texts, return_offsets_mapping=True, padding=False, truncation=False)
    rows: list[tuple[list[int], list[tuple[int, int]]]] = []
    for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if max_length is not None:
            ids, spans = ids[:limit], spans[:limit]
        if not ids:
            raise PromptError("The prompt is empty.", "It makes no tokens.", "Write a text.")
        if len(ids) > loaded.context:
            raise PromptError(
                "The prompt is too long.",
                f"It has {len(ids):,} tokens and the context of {loaded.name} is {loaded.context:,}.",
                "Shorten it.",
            )
        rows.append((ids, spans))

    length = max(len(ids) for ids, _ in rows)
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    input_ids = torch.full((len(rows), length), padding)
    offsets = torch.zeros(len(rows), length, 2, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (ids, spans) in enumerate(rows):
        place = slice(length - len(ids), None) if padding_side == "left" else slice(None, len(ids))
        input_ids[row, place] = torch.tensor(ids)
        offsets[row, place] = torch.tensor(spans)
        mask[row, place] = True
    names = [tokenizer.convert_ids_to_tokens(ids) for ids in input_ids.tolist()]
    tokens = [
        [text[start:end] or str(name) for name, (start, end) in zip(row, spans, strict=True)]
        for text, row, spans in zip(texts, names, offsets.tolist(), strict=True)
    ]
    return Encoding(texts, input_ids, mask, positions_of(mask), offsets, tokens)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Positions [B, T] that count a text's own tokens from 0, wherever its padding is."""
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


def capture(
    loaded: LoadedModel,
    texts: list[str],
    *,
    max_length: int | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> Trace:
    """Read texts in one forward and keep the queries, keys and values of every layer.

    Raises:
        PromptError: as `encode`.
    """
    encoding = encode(loaded, texts, max_length=max_length, padding_side=padding_side)
    trace = capture_ids(loaded, encoding.input_ids, encoding.attention_mask, encoding.position_ids)
    trace.texts, trace.tokens = encoding.texts, encoding.tokens
    trace.offsets = encoding.offsets.to(loaded.device)
    return trace


def capture_ids(
    loaded: LoadedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    grad: bool = False,
) -> Trace:
    """As `capture`, from token ids int64 [B, T], a mask bool or int [B, T], and positions int64 [B, T].

    Args:
        grad: keep the graph, so that a loss on the Trace reaches the model's weights.
    """
    input_ids = input_ids.to(loaded.device)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
    positions = positions_of(mask) if position_ids is None else position_ids.to(input_ids)
    mode = contextlib.nullcontext() if grad else torch.inference_mode()
    with loaded.lock, mode, recording(loaded.model) as recorder:
        run_backbone(loaded.model, input_ids, mask, positions)
    # Outside inference mode: what is stacked here is an ordinary tensor again, which a later loss may keep.
    return trace_of(loaded, recorder, input_ids, mask, positions)


def trace_of(
    loaded: LoadedModel, recorder: Recorder, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Trace:
    """A Trace from a recorded forward of any caller, a training step for one.

    >>> with recording(loaded.model) as recorder:
    ...     output = loaded.model(input_ids=ids, attention_mask=mask, position_ids=positions)
    >>> trace = trace_of(loaded, recorder, ids, mask, positions)
    """
    calls = recorder.calls
    length = input_ids.shape[1]
    shared: dict[tuple[int, bool], Tensor | None] = {}
    for call in calls:
        key = (id(call.mask), call.causal)
        if key not in shared:
            shared[key] = _readable_keys(call.mask, call.causal, length, input_ids.device)
    return Trace(
        q=torch.stack([call.q for call in calls], dim=1),
        k=torch.stack([call.k for call in calls], dim=1),
        v=torch.stack([call.v for call in calls], dim=1),
        attention_mask=attention_mask.bool(),
        geometry=loaded.geometry,
        scaling=[call.scaling for call in calls],
        masks=[shared[id(call.mask), call.causal] for call in calls],
        softcap=[call.softcap for call in calls],
        sinks=[_like_queries(call) for call in calls],
        rope=_rope(loaded, recorder),
        input_ids=input_ids,
        position_ids=position_ids,
        offsets=torch.zeros(*input_ids.shape, 2, dtype=torch.long, device=input_ids.device),
    )


def _like_queries(call: Call) -> Tensor | None:
    """A layer's sinks, which are weights: they carry gradients only where the forward did."""
    return call.sinks if call.sinks is None or call.q.requires_grad else call.sinks.detach()


def _rope(loaded: LoadedModel, recorder: Recorder) -> Rope | None:
    if loaded.rotary is None:
        return None
    return loaded.rotary.rope([rotary_pair(call.position_embeddings) for call in recorder.calls])


def _readable_keys(mask: Tensor | None, causal: bool, length: int, device: torch.device) -> Tensor | None:
    """A layer's mask as bool [B or 1, 1, T, T], None for plain causal; masks to add are 0 where a key is read."""
    if mask is None:
        return None if causal else torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    mask = mask[..., :length, :length]
    return mask.clone() if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def attention_agreement(loaded: LoadedModel, text: str, max_tokens: int = 512) -> float:
    """Can the Trace be trusted: largest |difference| of its attention to the model's own, on the text's first tokens.

    The model runs a second time with transformers' eager attention, which returns probabilities.
    """
    return attention_difference(loaded, capture(loaded, [text], max_length=max_tokens))


def attention_difference(loaded: LoadedModel, trace: Trace) -> float:
    """Largest |difference| of attention probabilities, over the queries that are no padding, Trace against eager."""
    with loaded.lock:
        loaded.model.set_attn_implementation("eager")
        try:
            with torch.inference_mode():
                output = run_backbone(
                    loaded.model,
                    trace.input_ids,
                    trace.attention_mask.long(),
                    trace.position_ids,
                    output_attentions=True,
                )
        finally:
            loaded.model.set_attn_implementation(intercept.NAME)
    eager = [attention for attention in output.attentions if attention is not None]
    largest = torch.zeros((), device=trace.q.device)
    for layer, expected in enumerate(eager):
        difference = (trace.attention(layer).detach() - expected.float()).abs().amax(dim=(1, 3))
        largest = torch.maximum(largest, difference[trace.attention_mask].max())  # a NaN stays one
    return float(largest)


def _readable(text: str, loaded: LoadedModel, limit: int, cut: bool) -> str:
    """The text, if a tokenizer can be trusted with it; cut to what `limit` tokens may hold when it will be cut anyway."""
    if not text.strip():
        raise PromptError("The prompt is empty.", "There is nothing to read in it.", "Write a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            "The prompt cannot be read.",
            f"Character {error.start} is half of a surrogate pair, not valid unicode.",
            "Remove it.",
        ) from error
    most = CHARACTERS_PER_TOKEN * limit
    if len(text) <= most:
        return text
    if cut:
        return text[:most]
    raise PromptError(
        "The prompt is too long.",
        f"It has {len(text):,} characters and the context of {loaded.name} is {loaded.context:,} tokens.",
        "Shorten it.",
    )
