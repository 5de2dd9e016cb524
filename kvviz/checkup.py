"""What a model really does, seen in two tiny forwards: its geometry, and whether its rotation can be undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvviz.geometry import Geometry
from kvviz.intercept import Recorder, family_attribute, recording, run_backbone
from kvviz.rope import Rope, RopeError, Rotary, Source, probe

LENGTH, SHIFT = 4, 7  # tokens of the tiny text, and by how many positions it is moved


@dataclass(frozen=True)
class Checkup:
    """Geometry as captured; `rotary` where keys can be un-rotated, or None and `note` says why not."""

    geometry: Geometry
    rotary: Rotary | None
    note: str


@torch.no_grad()
def check_up(model: PreTrainedModel, context: int) -> Checkup:
    """Run four tokens at two places and look at what the attention layers got.

    Raises:
        ValueError: no attention layer was called, or the layers differ in shape, or attend twice.
    """
    here, calls = _forward(model, offset=0)
    if not here.calls:
        raise ValueError("none of its layers called an attention function")
    modules = [call.module for call in here.calls]
    if any(module is following for module, following in pairwise(modules)):
        raise ValueError("each of its layers attends more than once (differential attention)")
    shapes = {(*call.q.shape[1::2], *call.k.shape[1::2], *call.v.shape[1::2]) for call in here.calls}
    if len(shapes) > 1:
        raise ValueError(f"its layers differ in heads and dims: {sorted(shapes)}")
    heads, head_dim, kv_heads, _, _, value_dim = next(iter(shapes))
    geometry = Geometry(len(here.calls), heads, kv_heads, head_dim, value_dim)
    if all(call.position_embeddings is None for call in here.calls):
        return Checkup(geometry, None, "its layers are given no rotary positions")
    there, _ = _forward(model, offset=max(0, min(SHIFT, context - LENGTH)))
    try:
        return Checkup(geometry, _rotary(here, there, calls), "")
    except RopeError as error:
        return Checkup(geometry, None, str(error))


def _rotary(here: Recorder, there: Recorder, calls: list[tuple[Source, Any]]) -> Rotary:
    """The rotation, accepted only if it explains what moving the text did to the keys of every layer."""
    cos_here, cos_there = _embeddings(here), _embeddings(there)
    given = next(pair for pair in cos_here if pair is not None)
    module = next(call.module for call in here.calls if call.position_embeddings is not None)
    function = family_attribute(type(module), "apply_rotary_pos_emb")
    if function is None:
        raise RopeError(f"{type(module).__name__} rotates with no function named apply_rotary_pos_emb")
    apply, partner = probe(function, given[0], here.calls[0].k.shape[-1])
    sources, source_of = _sources(cos_here, calls)

    everywhere = tuple(pair is not None for pair in cos_here)
    rotary = Rotary(apply, partner, everywhere, sources, source_of)
    ropes = rotary.rope(cos_here), rotary.rope(cos_there)
    # Half precision rounds each hidden state on the way through the layers; float32 does not to speak of.
    tolerance = 1e-3 if here.calls[0].k.dtype in (torch.float32, torch.float64) else 0.1
    rotated = []
    for layer, (near, far) in enumerate(zip(here.calls, there.calls, strict=True)):
        errors = [
            _distance(near.k, far.k)
        ]  # a layer without RoPE gives the same keys wherever the text stands
        if everywhere[layer]:
            errors.append(
                _distance(
                    *(_unrotate(rope, layer, k) for rope, k in zip(ropes, (near.k, far.k), strict=True))
                )
            )
        if not min(errors) < tolerance:
            raise RopeError(
                f"the keys of layer {layer} move with the text in a way its rotation does not explain"
            )
        rotated.append(len(errors) == 2 and errors[1] <= errors[0])
    if not any(rotated):
        raise RopeError("none of its layers rotates its keys")
    kept = tuple(source if turns else -1 for source, turns in zip(source_of, rotated, strict=True))
    return Rotary(apply, partner, tuple(rotated), sources, kept)


def _unrotate(rope: Rope, layer: int, k: Tensor) -> Tensor:
    return rope.layer(layer).unrotate(rearrange(k, "batch head position dim -> batch 1 head position dim"))


def _distance(a: Tensor, b: Tensor) -> float:
    """Relative distance of two sets of keys."""
    a, b = a.float(), b.float()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))


def _embeddings(recorder: Recorder) -> list[tuple[Tensor, Tensor] | None]:
    """(cos, sin) of each layer, None where a layer got none."""
    return [rotary_pair(call.position_embeddings) for call in recorder.calls]


def rotary_pair(given: Any) -> tuple[Tensor, Tensor] | None:
    """A layer's position embeddings as (cos, sin), or None.

    Raises:
        RopeError: they are of another form, complex numbers in Llama 4 for one.
    """
    if given is None:
        return None
    if not (
        isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(x, Tensor) for x in given)
    ):
        raise RopeError("its position embeddings are not a pair of cos and sin")
    return given[0], given[1]


def _sources(
    embeddings: list[tuple[Tensor, Tensor] | None], calls: list[tuple[Source, Any]]
) -> tuple[tuple[Source, ...], tuple[int, ...]]:
    """Which call of a rotary module made each layer's cos, known by being the same tensor."""
    made = {id(output[0]): index for index, (_, output) in enumerate(calls) if isinstance(output, tuple)}
    source_of = [-1 if pair is None else made.get(id(pair[0]), -2) for pair in embeddings]
    if -2 in source_of:
        raise RopeError("its layers do not take cos and sin as its rotary module gives them")
    return tuple(source for source, _ in calls), tuple(source_of)


def _forward(model: PreTrainedModel, offset: int) -> tuple[Recorder, list[tuple[Source, Any]]]:
    """Four tokens at positions offset, offset + 1, …: the attention calls, and the calls of rotary modules."""
    text = model.config.get_text_config(decoder=True)
    ids = torch.arange(1, LENGTH + 1, device=model.device)[None] % text.vocab_size
    with _rotary_calls(model) as calls, recording(model) as recorder:
        positions = torch.arange(offset, offset + LENGTH, device=model.device)[None]
        run_backbone(model, ids, torch.ones_like(ids), positions)
    return recorder, calls


@contextmanager
def _rotary_calls(model: nn.Module) -> Iterator[list[tuple[Source, Any]]]:
    """Calls of the model's rotary modules, with what they returned."""
    calls: list[tuple[Source, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((Source(module, args, dict(kwargs)), output))

    hooks = [
        module.register_forward_hook(note, with_kwargs=True)
        for module in model.modules()
        if "Rotary" in type(module).__name__
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
