"""Inspection: one pair, one text, one configuration, and every figure of it, computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from kvviz.align import calibrate
from kvviz.align.aligner import PARTS, MapProjectionAligner, Part
from kvviz.align.alignment import (
    Alignment,
    align,
    layer_similarity,
    make_aligner,
    resolve_key_space,
    resolve_layer_map,
    resolve_warp,
)
from kvviz.align.calibrate import Calibration, CalibrationTexts
from kvviz.align.fit import FitReport, score_projector
from kvviz.align.flat import FlatProjector
from kvviz.align.warp import Warp
from kvviz.capture import capture
from kvviz.config import AlignmentConfig, ConfigError
from kvviz.diagnostics.attention import AttentionDifference, attention_difference
from kvviz.diagnostics.errors import HeadErrors, head_errors
from kvviz.geometry import Geometry
from kvviz.pair import LoadedModel
from kvviz.segments import Segment, match_segments, split_text, token_segments
from kvviz.trace import Space, Trace


@dataclass(frozen=True)
class Prompt:
    """What the two models read, and how it falls into segments.

    student_text: the student's own, shorter text; None when both read the same. Segments left out are found
    in the text.
    """

    text: str
    student_text: str | None = None
    segments: tuple[Segment, ...] | None = None
    student_segments: tuple[Segment, ...] | None = None

    @property
    def same_text(self) -> bool:
        return self.student_text is None or self.student_text == self.text


@dataclass(frozen=True, eq=False)
class Reading:
    """Both models' traces of one prompt, and which segment each token belongs to.

    ids_t `[1, T_t]`, ids_s `[1, T_s]`: equal ids correspond. names: of each id, as the teacher's segment is called.
    """

    prompt: Prompt
    trace_t: Trace
    trace_s: Trace
    segments_t: tuple[Segment, ...]
    segments_s: tuple[Segment, ...]
    ids_t: Tensor
    ids_s: Tensor
    names: dict[int, str]


def read(teacher: LoadedModel, student: LoadedModel, prompt: Prompt) -> Reading:
    """Capture both models on a prompt.

    Raises:
        PromptError: for a text that is empty or longer than a model's context.
    """
    student_text = prompt.text if prompt.student_text is None else prompt.student_text
    # Models run where they are; what is looked at is small beside them, and is looked at on the CPU.
    trace_t, trace_s = capture(teacher, [prompt.text]).to("cpu"), capture(student, [student_text]).to("cpu")
    return with_segments(trace_t, trace_s, prompt)


def with_segments(trace_t: Trace, trace_s: Trace, prompt: Prompt) -> Reading:
    """A reading from traces already captured: only the segments are looked at anew."""
    segments_t = prompt.segments or tuple(split_text(prompt.text))
    if prompt.same_text:
        segments_s = segments_t
    else:
        segments_s = prompt.student_segments or tuple(split_text(prompt.student_text or ""))
    shared_t, shared_s = match_segments(segments_t, segments_s)
    names = {shared: segment.name for shared, segment in zip(shared_s, segments_s, strict=True)}
    names |= {
        shared: segment.name for shared, segment in reversed(list(zip(shared_t, segments_t, strict=True)))
    }
    return Reading(
        prompt=prompt,
        trace_t=trace_t,
        trace_s=trace_s,
        segments_t=segments_t,
        segments_s=segments_s,
        ids_t=_token_ids(trace_t, segments_t, shared_t),
        ids_s=_token_ids(trace_s, segments_s, shared_s),
        names=names,
    )


def _token_ids(trace: Trace, segments: tuple[Segment, ...], shared: list[int]) -> Tensor:
    if trace.offsets is None:
        raise ValueError("a trace captured from token ids has no characters to find segments by")
    own = token_segments(segments, trace.offsets[0], trace.attention_mask[0])
    return torch.where(own >= 0, torch.tensor(shared)[own.clamp_min(0)], -1)[None]


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything the pages and `kvviz profile` show. Nothing is computed before it is read.

    calibration: what fitted projectors and held-out scores need; None where the pair is not calibrated.
    projectors: weights that stand in for what the configuration would make, by name (`k.head_mixer`, …) and with the layer
    map they belong to as `layer_matrix`: those of a distillation run.
    """

    reading: Reading
    config: AlignmentConfig
    calibration: Calibration | None = None
    projectors: Mapping[str, Tensor] | None = None

    @property
    def teacher(self) -> Geometry:
        return self.reading.trace_t.geometry

    @property
    def student(self) -> Geometry:
        return self.reading.trace_s.geometry

    @cached_property
    def key_space(self) -> Space:
        return resolve_key_space(self.config, self.reading.trace_t, self.reading.trace_s)

    @cached_property
    def warp(self) -> Warp:
        reading = self.reading
        return resolve_warp(
            self.config,
            reading.trace_t,
            reading.trace_s,
            reading.ids_t,
            reading.ids_s,
            reading.prompt.same_text,
        )

    @cached_property
    def similarity(self) -> Tensor:
        """Linear CKA of keys on this text, `[L_s, L_t]`."""
        return layer_similarity(self.reading.trace_t, self.reading.trace_s, self.warp, self.key_space)

    @cached_property
    def layer_matrix(self) -> Tensor:
        if self.projectors is not None and LAYER_MATRIX in self.projectors:
            return _fitting(self.projectors[LAYER_MATRIX].float(), self.teacher, self.student)
        needs_text = self.config.layer_mapping_strategy == "cka"
        return resolve_layer_map(
            self.config, self.teacher, self.student, self.similarity if needs_text else None
        )

    @cached_property
    def made(self) -> tuple[MapProjectionAligner, FitReport | None]:
        if self.projectors is not None:
            return self._loaded(self.projectors)
        return _made(
            self.calibration, self.teacher, self.student, _fit_fields(self.config), _rows(self.layer_matrix)
        )

    def _loaded(self, weights: Mapping[str, Tensor]) -> tuple[MapProjectionAligner, FitReport | None]:
        """The configuration's projectors with these weights, scored where there is a calibration."""
        aligner = MapProjectionAligner.from_config(
            self.teacher, self.student, self.config, layer_matrix=self.layer_matrix
        )
        try:
            aligner.projectors.load_state_dict(
                {name: value for name, value in weights.items() if name != LAYER_MATRIX}
            )
        except RuntimeError as error:
            raise ConfigError("projectors: the run's do not fit this pair and configuration") from error
        aligner.requires_grad_(False)
        linear = all(_is_linear(aligner, part) for part in PARTS)
        if self.calibration is None or not linear:
            return aligner, None
        moments = self.calibration.under(self.layer_matrix)
        return aligner, FitReport(
            {part: score_projector(aligner.projector(part), moments[part].report) for part in PARTS}, {}
        )

    @property
    def aligner(self) -> MapProjectionAligner:
        return self.made[0]

    @property
    def fit_report(self) -> FitReport | None:
        """Held-out scores; None where the pair is not calibrated."""
        return self.made[1]

    @cached_property
    def alignment(self) -> Alignment:
        return self._align(self.aligner, self.config)

    @cached_property
    def baseline(self) -> Alignment:
        """The identity on the same text: same layers, same time, no parameters."""
        config = self.config.model_copy(update={"kv_projection_mode": "identity"})
        aligner, _ = make_aligner(self.teacher, self.student, config, self.layer_matrix, None)
        return self._align(aligner, config)

    def _align(self, aligner: MapProjectionAligner, config: AlignmentConfig) -> Alignment:
        return align(self.reading.trace_t, self.reading.trace_s, aligner, self.warp, config, self.key_space)

    @cached_property
    def errors(self) -> dict[Part, HeadErrors]:
        return self._errors(self.alignment)

    @cached_property
    def baseline_errors(self) -> dict[Part, HeadErrors]:
        return self._errors(self.baseline)

    def _errors(self, alignment: Alignment) -> dict[Part, HeadErrors]:
        valid = self.reading.trace_s.attention_mask
        return {part: head_errors(alignment.aligned[part], alignment.student[part], valid) for part in PARTS}

    @cached_property
    def attention(self) -> AttentionDifference:
        return attention_difference(self.alignment)

    @cached_property
    def baseline_attention(self) -> AttentionDifference:
        return attention_difference(self.baseline)

    def held_out(self, **changes) -> FitReport | None:
        """Held-out scores of another configuration on the same calibration, such as `kv_projection_mode="flat"`."""
        if self.calibration is None:
            return None
        config = self.config.model_copy(update=changes)
        return _made(
            self.calibration, self.teacher, self.student, _fit_fields(config), _rows(self.layer_matrix)
        )[1]


LAYER_MATRIX = "layer_matrix"
FIT_FIELDS = ("kv_projection_mode", "init", "share_dim_proj", "share_layers", "offset", "flat_kind", "seed")


def _fit_fields(config: AlignmentConfig) -> AlignmentConfig:
    """Only what the projectors depend on, so that moving a time slider does not fit them again."""
    return AlignmentConfig(**config.model_dump(include=set(FIT_FIELDS)))


def _is_linear(aligner: MapProjectionAligner, part: Part) -> bool:
    projector = aligner.projector(part)
    return not (isinstance(projector, FlatProjector) and projector.projector.kind == "elastic")


def _fitting(matrix: Tensor, teacher: Geometry, student: Geometry) -> Tensor:
    """A layer map that comes from a file, if it is one of this pair."""
    if matrix.shape != (student.layers, teacher.layers):
        raise ConfigError(
            f"projectors: their layer map {list(matrix.shape)} is not of this pair, {[student.layers, teacher.layers]}"
        )
    return matrix


def _rows(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


@lru_cache(maxsize=32)
def _made(
    calibration: Calibration | None,
    teacher: Geometry,
    student: Geometry,
    config: AlignmentConfig,
    layer_rows: tuple[tuple[float, ...], ...],
) -> tuple[MapProjectionAligner, FitReport | None]:
    layer_matrix = torch.tensor(layer_rows)
    moments = None if calibration is None else calibration.under(layer_matrix)
    return make_aligner(teacher, student, config, layer_matrix, moments)


def inspect(
    teacher: LoadedModel,
    student: LoadedModel,
    prompt: Prompt | str,
    config: AlignmentConfig | None = None,
    *,
    texts: CalibrationTexts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Read a prompt with both models and align it; a calibration is read from disk, or made once and kept.

    Args:
        texts: what to calibrate on; the bundled problems when None. Nothing is calibrated where nothing is fitted.
        progress: called with calibration texts done and texts in all.

    Raises:
        PromptError, ConfigError, CalibrationError: each says what, why, and what would work.
    """
    config = config or AlignmentConfig()
    reading = read(teacher, student, Prompt(prompt) if isinstance(prompt, str) else prompt)
    inspection = Inspection(reading, config)
    if config.init != "fitted" or config.kv_projection_mode == "identity":
        return inspection
    texts = texts or CalibrationTexts.bundled()
    key_space, matrix = inspection.key_space, inspection.layer_matrix
    key = calibrate.calibration_key(teacher, student, texts, key_space, matrix)
    calibration = calibrate.load(key)
    if calibration is None:
        calibration = calibrate.collect(teacher, student, texts, key_space, matrix, progress=progress)
        calibrate.save(key, calibration)
    return Inspection(reading, config, calibration)
