"""DistillConfig: everything that decides a run. A run's YAML, the page's widgets and `--set` are its spellings.

The alignment keys are the inspector's own (`AlignmentConfig`), beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from kvviz.config import AlignmentConfig, ConfigError, LossConfig
from kvviz.spec import Device, Dtype, ModelSpec

AlignerTraining = Literal["frozen", "trained"]
StudentReads = Literal["same", "brief"]
Schedule = Literal["constant", "linear", "cosine"]

# Arguments of `transformers.TrainingArguments` that a key of ours decides.
OWNED = {
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "warmup_steps",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "data_seed",
    "logging_steps",
    "logging_strategy",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "save_only_model",
    "eval_steps",
    "eval_strategy",
    "eval_on_start",
    "remove_unused_columns",
    "ignore_data_skip",
    "report_to",
    "resume_from_checkpoint",
    "use_cpu",
}


class DistillLossConfig(LossConfig):
    """Weight of each term of the objective; a term of weight 0 is not computed."""

    alpha_ce: float = Field(
        1.0, ge=0, title="CE weight", description="Cross-entropy on reasoning and answer, nats a token."
    )
    alpha_kd: float = Field(
        0.0,
        ge=0,
        title="Logit KD weight",
        description="KL(teacher ‖ student) of next-token probabilities; needs one tokenizer for both models.",
    )
    # Light: 0.1 each gained nothing over cross-entropy alone (docs/ab-matrix.md), 1 on V was worse in one look.
    alpha_k: float = Field(
        0.02, ge=0, title="K weight", description="1 − cosine of the student's keys to the aligned teacher's."
    )
    alpha_v: float = Field(0.02, ge=0, title="V weight", description="1 − cosine of values, likewise.")
    alpha_attn: float = Field(
        0.02, ge=0, title="Attention weight", description="KL(teacher ‖ student) of attention, nats a row."
    )

    @property
    def structural(self) -> bool:
        """Whether the teacher's KV cache takes part."""
        return self.alpha_k > 0 or self.alpha_v > 0 or self.alpha_attn > 0


class DistillConfig(AlignmentConfig):
    """One distillation run. Frozen and hashable; every key has a default: the bundled pair on its problems."""

    teacher: str = Field("bundled:teacher", title="Teacher", description="Hugging Face id or local folder.")
    teacher_revision: str | None = Field(None, title="Teacher revision", description="Branch, tag or commit.")
    teacher_dtype: Dtype = Field(
        "auto", title="Teacher dtype", description="auto: bfloat16 on a GPU, float32 on a CPU."
    )
    student: str = Field("bundled:student", title="Student", description="Hugging Face id or local folder.")
    student_revision: str | None = Field(None, title="Student revision", description="Branch, tag or commit.")
    device: Device = Field("auto", title="Device", description="auto: cuda, mps or cpu, in that order.")

    data: str = Field(
        "bundled",
        min_length=1,
        title="Data",
        description=(
            "bundled: the word problems. Else a .jsonl file with question and answer (GSM8K's layout) or prompt "
            "and completion, a folder saved by datasets, or a data set's Hub id."
        ),
    )
    data_config: str | None = Field(
        None, title="Data configuration", description="Of a Hub data set, such as main of openai/gsm8k."
    )
    student_reads: StudentReads = Field(
        "same",
        title="What the student reads",
        description=(
            "same: the teacher's text. brief: its own, shorter reasoning (the bundled brief form, or "
            "student_answer / student_completion in your data); the time warp carries the cache over."
        ),
    )
    max_length: int = Field(
        512, ge=8, title="Longest text", description="Tokens of either side; longer texts are cut."
    )

    steps: int = Field(300, ge=1, title="Steps", description="Optimiser steps.")
    batch_size: int = Field(8, ge=1, title="Batch size", description="Texts a device and forward.")
    gradient_accumulation: int = Field(
        1, ge=1, title="Gradient accumulation", description="Batches added up for one optimiser step."
    )
    learning_rate: float = Field(1e-3, gt=0, title="Learning rate", description="Of AdamW, at its peak.")
    warmup_steps: int = Field(20, ge=0, title="Warm-up steps", description="Steps to the peak, linearly.")
    schedule: Schedule = Field("cosine", title="Schedule", description="Of the learning rate after warm-up.")
    weight_decay: float = Field(0.01, ge=0, title="Weight decay", description="Of AdamW.")
    clip_norm: float = Field(
        1.0, ge=0, title="Gradient clipping", description="Largest norm; 0 clips nothing."
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Seed", description="Of data order, data drawn and projectors' starts."
    )

    eval_every: int = Field(
        100, ge=1, title="Evaluate every", description="Steps between evaluations, each with a checkpoint."
    )
    eval_examples: int = Field(
        200, ge=1, title="Evaluation problems", description="Held-out examples for loss and exact match."
    )
    log_every: int = Field(
        5, ge=1, title="Log every", description="Steps between two lines of metrics.jsonl."
    )
    max_new_tokens: int = Field(
        200, ge=1, title="Longest answer", description="Tokens written for one problem in an evaluation."
    )

    aligner: AlignerTraining = Field(
        "frozen",
        title="Aligner",
        description=(
            "frozen: projectors keep their weights (fitted first, unless init says otherwise). trained: they learn "
            "along with the student, as in the v4.0 report; a map that learns along can collapse the student's keys."
        ),
    )
    calibration_examples: int = Field(
        260,
        ge=10,
        title="Calibration examples",
        description="Training examples the projectors are fitted on.",
    )
    loss_config: DistillLossConfig = Field(
        default_factory=DistillLossConfig, title="Loss weights", description="Weight of each term."
    )

    report_to: str = Field(
        "none",
        title="Report to",
        description="Also send metrics to: tensorboard, wandb, trackio, … (what transformers' Trainer takes).",
    )
    trainer: tuple[tuple[str, Any], ...] = Field(
        (),
        title="Trainer arguments",
        description="More of transformers.TrainingArguments, such as fsdp, deepspeed or bf16.",
    )

    @field_validator("trainer", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        """A mapping as sorted pairs: hashable, and the same object whatever the order."""
        if isinstance(value, Mapping):
            value = sorted(value.items())
        try:
            pairs = tuple((str(name), _frozen(argument)) for name, argument in value)
        except (TypeError, ValueError) as error:
            raise ValueError("it takes name: value pairs") from error
        owned = [name for name, _ in pairs if name in OWNED]
        if owned:
            raise ValueError(f"{owned[0]} is decided by a key of its own")
        return pairs

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        elastic = self.kv_projection_mode == "flat" and self.flat_kind == "elastic"
        if self.target_length is not None:
            raise ValueError("target_length: a run takes its lengths from the texts; leave it out")
        if self.aligner == "trained" and self.kv_projection_mode == "identity":
            raise ValueError("aligner: identity has no parameters to train; use frozen")
        if elastic and self.init == "fitted":
            raise ValueError(
                "init: the elastic projector has no closed form; use init random, aligner trained"
            )
        loss = self.loss_config
        if not (loss.alpha_ce or loss.alpha_kd or loss.structural):
            raise ValueError("loss_config: every weight is 0, there is nothing to learn")
        if loss.alpha_kd and self.student_reads != "same":
            raise ValueError(
                "loss_config: alpha_kd compares the same next tokens; it needs student_reads same"
            )
        return self

    def spec(self, role: Literal["teacher", "student"]) -> ModelSpec:
        """Which model a side loads. A student that learns is held in float32, whatever it was saved in."""
        return ModelSpec(
            path=getattr(self, role),
            revision=getattr(self, f"{role}_revision"),
            dtype=self.teacher_dtype if role == "teacher" else "float32",
            device=self.device,
        )

    def with_settings(self, settings: Sequence[str]) -> Self:
        """With `key=value` settings on top, dots for nested keys: `loss_config.alpha_k=0`. Values are YAML.

        Raises:
            ConfigError: a setting without `=`, an unknown key, or a value it cannot take; named.
        """
        values = self.differences()
        for setting in settings:
            key, separator, text = setting.partition("=")
            if not separator or not key.strip():
                raise ConfigError(f"--set {setting}: it takes key=value")
            place = values
            *outer, last = key.strip().split(".")
            for name in outer:
                inner = place.setdefault(name, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"--set {setting}: {name} has no keys below it")
                place = inner
            try:
                place[last] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"--set {setting}: the value is no YAML") from error
        if "init_uniform" in values and not any(s.split("=")[0].strip() == "init" for s in settings):
            values.pop("init", None)
        return type(self).parse(values)

    def whole(self) -> dict[str, Any]:
        """As in `AlignmentConfig`; trainer arguments as a mapping."""
        arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in self.trainer}
        return super().whole() | {"trainer": arguments}

    def to_whole_yaml(self) -> str:
        """Every key as YAML, which `from_yaml` reads back to an equal object whatever the defaults are by then."""
        return yaml.safe_dump(self.whole(), sort_keys=False, allow_unicode=True)

    def differences(self) -> dict[str, Any]:
        """As in `AlignmentConfig`; trainer arguments as a mapping."""
        values = super().differences()
        if "trainer" in values:
            values["trainer"] = self.whole()["trainer"]
        return values


def _frozen(value: Any) -> Any:
    """A YAML value that can be hashed: lists become tuples, mappings tuples of pairs."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        raise ValueError("a mapping inside trainer: give a path to a file in its place")
    return value
