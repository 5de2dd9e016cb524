"""What is expensive and shared between reruns, pages and visitors: models, traces, calibrations, inspections."""

from __future__ import annotations

import threading
from collections import OrderedDict

import streamlit as st

from app.view import View
from kvviz.align import calibrate
from kvviz.align.alignment import resolve_key_space
from kvviz.align.calibrate import Calibration, CalibrationTexts
from kvviz.capture import attention_agreement, capture
from kvviz.config import AlignmentConfig
from kvviz.distill.checkpoint import Stage, read_projectors
from kvviz.inspection import Inspection, Prompt, Reading, with_segments
from kvviz.pair import LoadedModel, ModelSpec, load_model
from kvviz.trace import Trace

MODELS_HELD = 2


class ModelShelf:
    """The models in memory, a pair at most: what the new pair does not need is let go before the new is loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: OrderedDict[ModelSpec, LoadedModel] = OrderedDict()

    def get(self, spec: ModelSpec, keep: ModelSpec) -> LoadedModel:
        """Load `spec`, unless it is here; `keep` is the other side of the pair. Raises ModelError."""
        with self._lock:
            if spec not in self._models:
                unwanted = [held for held in self._models if held != keep]
                while len(self._models) >= MODELS_HELD and unwanted:
                    del self._models[unwanted.pop(0)]
                self._models[spec] = load_model(spec)
            self._models.move_to_end(spec)
            return self._models[spec]


@st.cache_resource(show_spinner=False)
def shelf() -> ModelShelf:
    """The one shelf of this server."""
    return ModelShelf()


def pair(view: View) -> tuple[LoadedModel, LoadedModel]:
    """The teacher and the student of a view. Raises ModelError."""
    teacher, student = view.spec("teacher"), view.spec("student")
    return shelf().get(teacher, keep=student), shelf().get(student, keep=teacher)


@st.cache_resource(show_spinner=False, max_entries=16)
def _trace(fingerprint: str, device: str, text: str, _model: LoadedModel) -> Trace:
    return capture(_model, [text]).to("cpu")


def reading(teacher: LoadedModel, student: LoadedModel, prompt: Prompt) -> Reading:
    """Both traces of a prompt with its segments. Raises PromptError."""
    student_text = prompt.text if prompt.student_text is None else prompt.student_text
    trace_t = _trace(teacher.fingerprint, str(teacher.device), prompt.text, teacher)
    trace_s = _trace(student.fingerprint, str(student.device), student_text, student)
    return with_segments(trace_t, trace_s, prompt)


@st.cache_resource(show_spinner=False, max_entries=16)
def agreement(fingerprint: str, device: str, text: str, _model: LoadedModel) -> float:
    """Largest difference between attention recomputed from the trace and transformers' own, on this text."""
    return attention_agreement(_model, text)


@st.cache_resource(show_spinner=False, max_entries=4)
def _calibration(key: str) -> Calibration:
    found = calibrate.load(key)
    if found is None:
        raise KeyError(key)  # Not kept by cache_resource: the next call looks again.
    return found


def calibration_key(
    read: Reading,
    teacher: LoadedModel,
    student: LoadedModel,
    config: AlignmentConfig,
    texts: CalibrationTexts,
) -> str:
    """The name of the calibration this pair and configuration need."""
    key_space = resolve_key_space(config, read.trace_t, read.trace_s)
    # Only baked into the key where the pair is too large for cross-layer moments: else it is not worked out for it.
    matrix = None if calibrate.fits_cross(teacher.geometry) else Inspection(read, config).layer_matrix
    return calibrate.calibration_key(teacher, student, texts, key_space, matrix)


def kept_calibration(key: str) -> Calibration | None:
    """A calibration from memory or disk, or None."""
    try:
        return _calibration(key)
    except KeyError:
        return None


@st.cache_resource(show_spinner=False)
def bundled_texts() -> CalibrationTexts:
    """The bundled problems that pairs are calibrated on."""
    return CalibrationTexts.bundled()


@st.cache_resource(show_spinner=False, max_entries=24)
def inspection(
    teacher: str,
    student: str,
    config: AlignmentConfig,
    calibration: str | None,
    projectors: str | None,
    _read: Reading,
    _at: Stage | None,
    prompt: Prompt,
) -> Inspection:
    """An inspection and all it has computed so far; equal arguments get the same object back.

    projectors: which file of a run `_at` reads them from, and which version of it.
    """
    return Inspection(
        _read,
        config,
        None if calibration is None else kept_calibration(calibration),
        None if _at is None else read_projectors(_at),
    )
