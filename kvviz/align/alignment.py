"""Alignment: one text's teacher cache in the student's geometry, with everything that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from kvviz.align.aligner import PARTS, MapProjectionAligner, Part, time_warper
from kvviz.align.calibrate import states
from kvviz.align.fit import FitReport, fit_aligner, score_projector
from kvviz.align.layers import cka_map, layer_map, linear_cka
from kvviz.align.mixed import mixed_attention
from kvviz.align.moments import SplitMoments
from kvviz.align.text import text_warp
from kvviz.align.warp import Warp
from kvviz.config import AlignmentConfig, ConfigError
from kvviz.geometry import Geometry
from kvviz.trace import Space, Trace

CKA_LAYERS = 2  # How many teacher layers a student layer reads under the cka strategy.


@dataclass(frozen=True, eq=False)
class Alignment:
    """The teacher's q, k, v as the aligner carries them to the student, beside the student's own.

    aligned, student: part → `[batch, L_s, student heads, T_s, student dim]` in `key_space`.
    layer_matrix `[L_s, L_t]`, warp (rows of a few taps), aligner: the maps that made it.
    """

    config: AlignmentConfig
    key_space: Space
    aligned: dict[Part, Tensor]
    student: dict[Part, Tensor]
    trace_t: Trace
    trace_s: Trace
    layer_matrix: Tensor
    warp: Warp
    aligner: MapProjectionAligner

    def cached(self, part: Part) -> Tensor:
        """The aligned part as the student's cache would hold it: rotated at the student's positions."""
        x = self.aligned[part]
        if part == "v" or self.key_space == "post_rope" or self.trace_s.rope is None:
            return x
        return self.trace_s.rope.rotate(x)

    @cached_property
    def projected(self) -> Trace:
        """The aligned teacher as if the student had run it: its q, k, v under the student's masks and scaling."""
        q, k, v = (self.cached(part) for part in PARTS)
        return replace(self.trace_s, q=q, k=k, v=v)

    def mixed_attention(self, layer: int) -> tuple[Tensor, Tensor]:
        """What the teacher really attended to, at one student layer; see `kvviz.align.mixed.mixed_attention`."""
        return mixed_attention(self.trace_t, self.aligner, self.warp, self.trace_s.allowed(layer), layer)

    def attention_target(self) -> Tensor | None:
        """`t_attention` for `StructuralKVLoss`, `[batch, L_s, query head, T_s, T_s]`; None where the target is projected."""
        if self.config.attention_target == "projected":
            return None
        return torch.stack(
            [self.mixed_attention(layer)[0] for layer in range(self.trace_s.geometry.layers)], dim=1
        )


def resolve_key_space(config: AlignmentConfig, teacher: Trace, student: Trace) -> Space:
    """`pre_rope` or `post_rope`.

    Raises:
        ConfigError: where pre_rope is asked for and a model has no rotary positions to undo.
    """
    rotary = teacher.rope is not None and student.rope is not None
    if config.key_space == "auto":
        return "pre_rope" if rotary else "post_rope"
    if config.key_space == "pre_rope" and not rotary:
        without = "teacher" if teacher.rope is None else "student"
        raise ConfigError(
            f"key_space: pre_rope needs two rotary models, the {without} is not; use auto or post_rope"
        )
    return config.key_space


def resolve_layer_map(
    config: AlignmentConfig, teacher: Geometry, student: Geometry, similarity: Tensor | None = None
) -> Tensor:
    """The layer map a configuration asks for, `[L_s, L_t]`, rows summing to 1.

    Args:
        similarity: `[L_s, L_t]` of `layer_similarity`, needed by the cka strategy.

    Raises:
        ConfigError: for a custom matrix that does not fit this pair.
    """
    if config.layer_mapping_strategy == "cka":
        if similarity is None:
            raise ConfigError("layer_mapping_strategy: cka needs the layers' similarity on a text")
        return cka_map(similarity, min(CKA_LAYERS, teacher.layers))
    strategy = (
        config.layer_matrix if config.layer_mapping_strategy == "custom" else config.layer_mapping_strategy
    )
    try:
        return layer_map(student.layers, teacher.layers, strategy)
    except ValueError as error:
        raise ConfigError(f"layer_matrix: {error}") from error


def resolve_warp(
    config: AlignmentConfig, teacher: Trace, student: Trace, ids_t: Tensor, ids_s: Tensor, same_text: bool
) -> Warp:
    """The time warp between two captured texts: by shared characters, or segment by segment.

    Raises:
        ConfigError: where `time_method` is text and the two read different texts.
    """
    method = config.time_method
    if method == "text" and not same_text:
        raise ConfigError(
            "time_method: text needs both models to read the same text; use auto, linear or area"
        )
    if method == "text" or (method == "auto" and same_text):
        return text_warp(teacher.offsets, teacher.attention_mask, student.offsets, student.attention_mask)
    return time_warper(config).warp(ids_t, ids_s.shape[1], ids_s)


def layer_similarity(teacher: Trace, student: Trace, warp: Warp, key_space: Space) -> Tensor:
    """Linear CKA of keys between every student and teacher layer on one batch, `[L_s, L_t]`."""
    valid = student.attention_mask[0].cpu()

    def rows(x: Tensor) -> Tensor:
        return rearrange(x[0].float().cpu(), "layer head position dim -> layer position (head dim)")[:, valid]

    keys_t = rows(warp.apply(states(teacher, "k", key_space)))
    keys_s = rows(states(student, "k", key_space))
    return torch.tensor([[linear_cka(x, y) for x in keys_t] for y in keys_s])


def make_aligner(
    teacher: Geometry,
    student: Geometry,
    config: AlignmentConfig,
    layer_matrix: Tensor,
    moments: Mapping[Part, SplitMoments] | None,
) -> tuple[MapProjectionAligner, FitReport | None]:
    """The projectors a configuration asks for, fitted where it says so, scored where there are moments.

    Raises:
        ConfigError: where they are to be fitted and there is nothing to fit them on.
    """
    aligner = MapProjectionAligner.from_config(teacher, student, config, layer_matrix=layer_matrix)
    elastic = config.kv_projection_mode == "flat" and config.flat_kind == "elastic"
    if config.init == "fitted" and config.kv_projection_mode != "identity":
        if elastic:
            raise ConfigError(
                "init: fitted has no closed form for the elastic projector; use flat_kind linear, or init random"
            )
        if moments is None:
            raise ConfigError(
                "init: fitted needs a calibration of this pair; calibrate it, or use uniform or random"
            )
        return aligner, fit_aligner(aligner, moments)
    if moments is None or elastic:
        return aligner, None
    scores = {part: score_projector(aligner.projector(part), moments[part].report) for part in moments}
    return aligner, FitReport(scores, {})


@torch.no_grad()
def align(
    teacher: Trace,
    student: Trace,
    aligner: MapProjectionAligner,
    warp: Warp,
    config: AlignmentConfig,
    key_space: Space,
) -> Alignment:
    """Carry one captured text through a ready aligner, in float32, where the student's trace is."""
    device = student.k.device
    # Already fitted and small beside the models: it follows the student, and nothing else uses it meanwhile.
    aligner = aligner.to(device).eval()
    parts = {part: states(teacher, part, key_space).float().to(device) for part in ("k", "v", "q")}
    k, v, q = aligner(parts["k"], parts["v"], parts["q"], warp=warp)
    own: dict[Part, Tensor] = {part: states(student, part, key_space).float() for part in ("q", "k", "v")}
    return Alignment(
        config=config,
        key_space=key_space,
        aligned={"q": q, "k": k, "v": v},
        student=own,
        trace_t=teacher,
        trace_s=student,
        layer_matrix=aligner.layer_matrix,
        warp=warp,
        aligner=aligner,
    )
