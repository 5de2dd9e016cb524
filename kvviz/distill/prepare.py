"""Before a run: both models, their examples, and the projectors at their start; all checked, so that nothing fails late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from kvviz.align import calibrate
from kvviz.align.alignment import (
    layer_similarity,
    make_aligner,
    resolve_key_space,
    resolve_layer_map,
)
from kvviz.align.calibrate import CalibrationTexts
from kvviz.align.fit import FitReport
from kvviz.align.text import text_warp
from kvviz.capture import capture
from kvviz.config import ConfigError
from kvviz.distill.batch import Collator
from kvviz.distill.config import DistillConfig
from kvviz.distill.data import Data, Example, load_data
from kvviz.distill.objective import Objective
from kvviz.errors import ExplainedError
from kvviz.pair import LoadedModel, load_model


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run trains with. fit: held-out scores of the projectors' start; None where they were not scored."""

    config: DistillConfig
    student: LoadedModel
    teacher: LoadedModel
    objective: Objective
    collator: Collator
    data: Data
    fit: FitReport | None


def prepare(config: DistillConfig, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Load the pair and the examples, and fit the projectors where the configuration says so.

    Calibration reads `calibration_examples` training examples once; its sums are kept on disk as the inspector's are.

    Raises:
        ModelError, DataError, ConfigError, CalibrationError: each names what cannot be used, and why.
    """
    check_reporters(config)
    data = load_data(config)
    teacher, student = load_model(config.spec("teacher")), load_model(config.spec("student"))
    teacher.model.requires_grad_(False)
    if config.loss_config.alpha_kd and not one_tokenizer(teacher, student):
        raise ExplainedError(
            "Logit KD cannot be used on this pair.",
            "The two models have different tokenizers, so their next-token probabilities are over different tokens.",
            "Set alpha_kd to 0, or choose two models of one family.",
        )
    sample = min((example for example in data.calibration), key=lambda example: len(example.text))
    texts = [sample.text]
    # Both always read the same text where maps are made; the student's own shorter text comes in training.
    trace_t, trace_s = (
        capture(side, texts, max_length=config.max_length).to("cpu") for side in (teacher, student)
    )
    key_space = resolve_key_space(config, trace_t, trace_s)
    similarity = None
    if config.layer_mapping_strategy == "cka":
        warp = text_warp(trace_t.offsets, trace_t.attention_mask, trace_s.offsets, trace_s.attention_mask)
        similarity = layer_similarity(trace_t, trace_s, warp, key_space)
    layer_matrix = resolve_layer_map(config, teacher.geometry, student.geometry, similarity)
    moments = None
    if config.init == "fitted" and config.kv_projection_mode != "identity":
        found = _calibration(teacher, student, data.calibration, key_space, layer_matrix, progress)
        moments = found.under(layer_matrix)
    aligner, fit = make_aligner(teacher.geometry, student.geometry, config, layer_matrix, moments)
    objective = Objective(student, teacher, aligner.to(student.device), config, key_space)
    collator = Collator(student, teacher, config, config.max_length, config.student_reads == "same")
    return Prepared(config, student, teacher, objective, collator, data, fit)


def check_reporters(config: DistillConfig) -> None:
    """Raises ConfigError where metrics are to go to something unknown or not installed, before anything starts."""
    for name in (name.strip() for name in config.report_to.split(",")):
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError(f"report_to: {name!r} is none of none, all, {known}")
        if name not in get_available_reporting_integrations():
            raise ConfigError(f"report_to: {name} is not installed here (pip install {name}), or use none")


def one_tokenizer(teacher: LoadedModel, student: LoadedModel) -> bool:
    """Whether token i means the same to both, and every text falls into the same tokens."""
    one, other = teacher.tokenizer, student.tokenizer
    return (
        one.get_vocab() == other.get_vocab()
        and one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
        and teacher.model.config.vocab_size == student.model.config.vocab_size
    )


def _calibration(
    teacher, student, examples: tuple[Example, ...], key_space, layer_matrix: torch.Tensor, progress
):
    try:
        texts = CalibrationTexts.split([example.text for example in examples])
    except calibrate.CalibrationError as error:
        raise ConfigError(f"init: fitted needs texts to fit on; {error}") from error
    key = calibrate.calibration_key(teacher, student, texts, key_space, layer_matrix)
    found = calibrate.load(key)
    if found is None:
        found = calibrate.collect(teacher, student, texts, key_space, layer_matrix, progress=progress)
        calibrate.save(key, found)
    return found
