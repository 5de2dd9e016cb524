"""What a run will take: measured on two of its own steps and a few of its evaluation's problems, then thrown away."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from kvviz.distill.config import DistillConfig
from kvviz.distill.prepare import prepare
from kvviz.distill.trainer import DistillTrainer

STEPS = 2
PROBLEMS = 100  # as many as are written at once


class _Nowhere:
    """A record that keeps nothing."""

    def metrics(self, metrics: dict[str, Any]) -> None:
        """Dropped."""

    def snapshot(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Dropped."""

    def answers(self, step: int, answers: Any) -> None:
        """Dropped."""


class _Clock(TrainerCallback):
    """Notes when each optimiser step ended, and ends the training after two."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after each optimiser step; nothing is evaluated or saved."""
        control.should_evaluate = control.should_save = False
        control.should_training_stop |= state.global_step >= STEPS
        self.ends.append(time.monotonic())


def trial(config: DistillConfig) -> dict[str, Any]:
    """Estimate a run on this machine, as loaded as it is now.

    Returns:
        seconds_ready (loading and calibrating), seconds_step (the second step: the first one warms up), seconds_evaluation
        (all of `eval_examples`, scaled from a few), seconds_total, peak_bytes (of this process, or of the GPU),
        parameters_trained, device.

    Raises:
        ModelError, DataError, ConfigError, CalibrationError: as the run itself would.
    """
    began = time.monotonic()
    short = config.model_copy(
        update={"eval_examples": min(PROBLEMS, config.eval_examples), "report_to": "none"}
    )
    prepared = prepare(short)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillTrainer(prepared, Path(folder), _Nowhere(), [clock])
        trainer.remove_callback(PrinterCallback)  # what is printed is the estimate alone
        ready = time.monotonic() - began
        trainer.train()
        before = time.monotonic()
        trainer.evaluate()
        evaluation = (time.monotonic() - before) * config.eval_examples / len(prepared.data.evaluation)
    step = clock.ends[-1] - clock.ends[0] if len(clock.ends) > 1 else clock.ends[0] - began - ready
    evaluations = 1 + -(-config.steps // config.eval_every)
    device = prepared.student.device
    return {
        "seconds_ready": ready,
        "seconds_step": step,
        "seconds_evaluation": evaluation,
        "seconds_total": ready + step * config.steps + evaluation * evaluations,
        "peak_bytes": peak_bytes(device),
        "parameters_trained": sum(p.numel() for p in trainer.objective.parameters() if p.requires_grad),
        "device": str(device),
    }


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU where the run is on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
