"""The process of a run: train it from its last checkpoint, or from the start, and write down what happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from kvviz.distill.ab import gain
from kvviz.distill.answers import answers_path
from kvviz.distill.evaluate import Answer
from kvviz.distill.prepare import prepare
from kvviz.distill.progress import duration
from kvviz.distill.run import Run
from kvviz.distill.trainer import DistillTrainer

Ending = Literal["finished", "stopped"]


class RunRecord:
    """Writes a run's figures into its folder; see `kvviz.distill.trainer.Record`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def metrics(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.run.append(metrics)

    def snapshot(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write snapshots/step-….safetensors; readers see the whole file or none."""
        path = self.run.snapshot_path(step)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)

    def answers(self, step: int, answers: Sequence[Answer]) -> None:
        """Write answers/step-….jsonl, one object a problem."""
        path = answers_path(self.run, step)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
        partial.replace(path)


class FollowRun(TrainerCallback):
    """Keeps the run's status at the step it is at, heeds a request to stop, and ends on an evaluation and a checkpoint."""

    trainer: DistillTrainer

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stopped = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after each optimiser step, on every process."""
        if state.is_world_process_zero:
            self.run.write_status("running", step=state.global_step, steps=state.max_steps)
        last = state.global_step >= state.max_steps
        self.stopped = self._stop_requested() and not last
        if self.stopped or last:
            control.should_log = control.should_save = True
            control.should_evaluate |= last
            control.should_training_stop = True
        elif control.should_save:
            # What was logged so far belongs to the checkpoint: a resumed run begins a new mean.
            control.should_log = True

    def _stop_requested(self) -> bool:
        """Whether any process has seen the request: all stop at the same step."""
        seen = self.run.stop_requested()
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return seen
        return bool(accelerator.reduce(torch.tensor(int(seen), device=accelerator.device), "sum"))


def work(run: Run) -> Ending:
    """Train a run in this process (or in this process of several) until it is finished or asked to stop.

    Raises:
        ModelError, DataError, ConfigError, CalibrationError: what cannot be used, and why.
    """
    transformers_logging.disable_progress_bar()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    began = time.monotonic()
    prepared = prepare(run.config)
    if prepared.fit is not None:
        scores = ", ".join(
            f"{part.upper()} {score.total_r2:.3f}" for part, score in prepared.fit.scores.items()
        )
        print(f"projectors on examples held out from their fit, R²: {scores}", flush=True)
    print(f"{prepared.data.source}; ready after {duration(time.monotonic() - began)}", flush=True)
    follow = FollowRun(run)

    trainer = DistillTrainer(prepared, run.folder / "checkpoints", RunRecord(run), [follow])
    follow.trainer = trainer
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        trainer.args.eval_on_start = True
    else:
        step = run.checkpoints()[-1]
        print(f"going on after step {step}", flush=True)
        known = {entry["step"]: entry for entry in run.metrics() if entry["step"] <= step}
        trainer.recall(known)
    if trainer.is_world_process_zero():
        run.write_status("running", step=0 if checkpoint is None else step, steps=run.config.steps)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    found = gain(run) if trainer.is_world_process_zero() else None
    if found is not None:
        points = f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
        print(f"exact match against the start, on the same problems: {points}, 95% by bootstrap", flush=True)
    return "stopped" if follow.stopped else "finished"
