"""The one interception point: transformers' AttentionInterface.

It hands one function the queries, keys and values of every layer, after RoPE, with the mask and the scaling.
While nobody records, the function passes the work on and changes nothing: generation and training run on it.
Recording goes through a ContextVar, so that two threads with two models never mix.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "kvviz"


@dataclass
class Call:
    """What one attention layer was called with: q [B, Hq, T, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv]."""

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    # The layer's own argument, as its model made it: (cos, sin) in all but a few families; None without RoPE.
    position_embeddings: Any


@dataclass
class Recorder:
    """The attention calls of one forward, in order: layer l is call l."""

    calls: list[Call] = field(default_factory=list)
    position_embeddings: dict[int, Any] = field(default_factory=dict)  # id of the module -> its argument


_recorder: ContextVar[Recorder | None] = ContextVar("kvviz_recorder", default=None)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function registered as "kvviz": records if asked, then sdpa, or eager where sdpa cannot."""
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    recorder = _recorder.get()
    if recorder is not None:
        scaling = kwargs.get("scaling")
        causal = kwargs.get("is_causal")
        recorder.calls.append(
            Call(
                module=module,
                q=query,
                k=key,
                v=value,
                mask=attention_mask,
                causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
                scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
                softcap=softcap,
                sinks=sinks,
                position_embeddings=recorder.position_embeddings.get(id(module)),
            )
        )
    if softcap is None and sinks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # sdpa has neither a softcap nor sinks; the family's own eager function has, and takes a mask to add.
    eager = family_attribute(type(module), "eager_attention_forward")
    if eager is None:
        raise NotImplementedError(
            f"{type(module).__name__} needs an attention that only its own file could give"
        )
    output, _ = eager(module, query, key, value, additive_mask(attention_mask, query, key), **kwargs)
    return output, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def additive_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask to add to the scores, [B or 1, 1, Tq, Tk], from a bool one (True: may be read) or None (causal)."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[
            None, None
        ]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)


@contextmanager
def recording(model: nn.Module) -> Iterator[Recorder]:
    """Record the attention calls of a forward of `model` in this thread. One forward for each `with`.

    >>> with recording(model) as recorder:
    ...     output = model(**batch)
    """
    recorder = Recorder()
    hooks = [
        module.register_forward_pre_hook(partial(_keep_position_embeddings, recorder), with_kwargs=True)
        for module in model.modules()
        if "position_embeddings" in _arguments(type(module))
    ]
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)
        for hook in hooks:
            hook.remove()


def family_attribute(cls: type, name: str) -> Any | None:
    """What the file that defines `cls` (or a class it extends) calls `name`; None where it has no such thing."""
    for base in cls.__mro__:
        found = getattr(sys.modules.get(base.__module__), name, None)
        if found is not None:
            return found
    return None


def _keep_position_embeddings(
    recorder: Recorder, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    # Another thread may run the same model at the same time: its forward is not ours to note.
    if _recorder.get() is not recorder:
        return
    if "position_embeddings" in kwargs:
        recorder.position_embeddings[id(module)] = kwargs["position_embeddings"]
    else:
        names = _arguments(type(module))[1:]  # without self
        recorder.position_embeddings[id(module)] = dict(zip(names, args, strict=False)).get(
            "position_embeddings"
        )


def _arguments(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, self first."""
    return _parameters(cls.forward)


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def run_backbone(
    model: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **kwargs: Any
) -> Any:
    """One forward of all layers, without a cache and without the output embedding, whose logits nobody reads.

    Position ids are given where the model takes them, so that left padding does not shift its positions.
    """
    backbone = model.base_model
    if "position_ids" in _arguments(type(backbone)):
        kwargs["position_ids"] = position_ids
    return backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
