"""The Trainer of a run: transformers' own, with our objective, our metrics and checkpoints that are model folders."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainerControl, TrainingArguments

from kvviz.distill.config import DistillConfig
from kvviz.distill.data import Data, Example
from kvviz.distill.evaluate import Answer, accuracy, add_up, answers, by_head, collapsing, merged, summary
from kvviz.distill.objective import TERMS, Objective
from kvviz.distill.prepare import Prepared
from kvviz.distill.run import COMPLETE, PROJECTORS

OPTIMIZER_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt")
PROBE_EXAMPLES = 4  # held-out examples whose errors head by head go into every snapshot
EVAL_BATCH = 32


class Record(Protocol):
    """Where a run's figures go."""

    def metrics(self, metrics: dict[str, Any]) -> None:
        """One line: `step` and what was measured."""

    def snapshot(self, step: int, tensors: dict[str, Tensor]) -> None:
        """At every log: errors head by head, and the projectors."""

    def answers(self, step: int, answers: Sequence[Answer]) -> None:
        """At every evaluation: what the student wrote."""


class Examples(Dataset):
    """Training examples by index, made when asked for."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.train_size

    def __getitem__(self, index: int) -> Example:
        return self.data.train(index)


class DistillTrainer(Trainer):
    """Trains `Prepared.objective`.

    Args:
        folder: where checkpoints go. record: what is written down on the way, by rank 0 alone.
    """

    control: TrainerControl

    def __init__(
        self,
        prepared: Prepared,
        folder: Path,
        record: Record,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.prepared, self.record = prepared, record
        self.start: dict[str, float] = {}  # the first evaluation: what spreads are compared with
        self._terms: dict[str, list[Tensor]] = {}
        self._tokens_seen = 0
        super().__init__(
            model=prepared.objective,
            args=arguments(prepared.config, folder, prepared.student.device),
            data_collator=prepared.collator,
            train_dataset=Examples(prepared.data),
            eval_dataset=list(prepared.data.evaluation),
            callbacks=callbacks,
        )
        # Losses are means already: the Trainer divides them by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        teacher = prepared.teacher
        teacher.model = self.accelerator.prepare_model(teacher.model, evaluation_mode=True)
        teacher.device = prepared.student.device = self.args.device

    @property
    def objective(self) -> Objective:
        """The module itself, whatever the Trainer wrapped it in."""
        return self.prepared.objective

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective of one batch; over several processes, of all their batches together."""
        terms = model(**inputs)
        counts = torch.stack([terms["tokens"], terms["positions"]]).double()
        processes = self.accelerator.num_processes
        # A process with more tokens counts for more, as it would in one large batch.
        everybody = self.accelerator.reduce(counts, "sum") if processes > 1 else counts
        share = (counts * processes / everybody.clamp(min=1)).float()
        loss = terms["loss_tokens"] * share[0] + terms["loss_positions"] * share[1]
        for name in TERMS:
            which = 0 if name in ("ce_loss", "kd_loss") else 1
            self._terms.setdefault(name, []).append(terms[name] * share[which])
        self._tokens_seen += int(everybody[1])
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each term since the last log; every process takes part, rank 0 writes."""
        if "loss" in logs:
            for name, values in self._terms.items():
                mean = self.accelerator.reduce(torch.stack(values).mean(), "mean")
                if not torch.isnan(mean):
                    logs[name] = float(mean)
            logs["tokens_seen"] = self._tokens_seen
            logs["cpu_seconds"] = (
                time.process_time()
            )  # of rank 0; what a run costs, whatever else the machine does
            self._terms.clear()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            if "loss" in logs:
                self.take_snapshot()
            self.record.metrics({"step": self.state.global_step} | logs)

    def recall(self, known: Mapping[int, Mapping[str, float]]) -> None:
        """What was logged before a run went on, by step: counts go on from there, spreads are compared with the start."""
        self.start = dict(known.get(0, {}))
        self._tokens_seen = int(max((entry.get("tokens_seen", 0) for entry in known.values()), default=0))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out losses, spread, R² and exact match; the examples are shared out over processes."""
        config, data = self.prepared.config, self.prepared.data
        numbered = list(enumerate(data.evaluation))
        mine = numbered[self.accelerator.process_index :: self.accelerator.num_processes]
        was_training = self.model.training
        self.model.eval()
        with self.compute_loss_context_manager():
            sums = add_up(self.objective, self.batches([example for _, example in mine]))
            told = answers(self.prepared.student, mine, config.max_new_tokens)
        self.model.train(was_training)
        found = summary(merged(gather_object([sums])))
        told = sorted(gather_object(told), key=lambda answer: answer.index)
        found |= accuracy(sum(answer.correct for answer in told), len(told))
        if self.is_world_process_zero():
            self.record.answers(self.state.global_step, told)
        if not self.start:
            self.start = found
            if self.is_world_process_zero():
                self.take_snapshot()
        if self.is_world_process_zero():
            for warning in collapsing(found, self.start):
                print(f"warning: step {self.state.global_step}: {warning}", flush=True)
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def batches(self, examples: Sequence[Example]) -> Any:
        """Batches of held-out examples on this process's device, of like length."""
        ordered = sorted(examples, key=lambda example: len(example.text))
        for first in range(0, len(ordered), EVAL_BATCH):
            yield self._prepare_inputs(self.prepared.collator(ordered[first : first + EVAL_BATCH]))

    @cached_property
    def probe(self) -> dict[str, Tensor]:
        """The held-out batch of every snapshot: the same, so that it is read into tokens once."""
        return next(iter(self.batches(self.prepared.data.evaluation[:PROBE_EXAMPLES])))

    def take_snapshot(self) -> None:
        """Errors head by head on a few held-out examples, and the projectors where they are trained (or at the start)."""
        step = self.state.global_step
        was_training = self.model.training
        self.model.eval()
        with self.compute_loss_context_manager():
            tensors = by_head(self.objective, self.probe)
        self.model.train(was_training)
        if step == 0 or self.prepared.config.aligner == "trained":
            tensors |= {f"projectors.{name}": value for name, value in projectors_of(self.objective).items()}
        self.record.snapshot(step, tensors)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A checkpoint is a model folder of the student, with the projectors beside it; safetensors, no pickled arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        whole = self.objective.state_dict() if state_dict is None else state_dict
        student = {
            name.removeprefix("student."): value
            for name, value in whole.items()
            if name.startswith("student.")
        }
        self.prepared.student.model.save_pretrained(folder, state_dict=student)
        self.prepared.student.tokenizer.save_pretrained(folder)
        save_file(projectors_of(self.objective, whole), folder / PROJECTORS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's; then marked complete, and only then older optimiser states are let go."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return
        root = Path(str(self.args.output_dir))
        newest = root / f"checkpoint-{self.state.global_step}"
        (newest / COMPLETE).touch()
        for folder in root.glob("checkpoint-*"):
            if folder != newest:
                for name in OPTIMIZER_FILES:
                    (folder / name).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Student and projectors of a checkpoint, into the objective in place."""
        folder = Path(resume_from_checkpoint)
        saved = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=self.prepared.student.dtype
        )
        self.objective.student.load_state_dict(saved.state_dict())
        load_projectors(self.objective, load_file(folder / PROJECTORS))


def projectors_of(objective: Objective, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights of the projectors by name (`k.head_mixer`, …) and the layer map, on the CPU, as they are saved."""
    state = objective.state_dict() if state is None else state
    prefix = "aligner.projectors."
    found = {
        name.removeprefix(prefix): value.detach().cpu().contiguous()
        for name, value in state.items()
        if name.startswith(prefix)
    }
    return found | {"layer_matrix": objective.aligner.layer_matrix.cpu().contiguous()}


def load_projectors(objective: Objective, weights: Mapping[str, Tensor]) -> None:
    """Weights as `projectors_of` gave them, into an objective of the same configuration."""
    aligner = objective.aligner
    aligner.projectors.load_state_dict(
        {name: value for name, value in weights.items() if name != "layer_matrix"}
    )
    aligner.layer_matrix.copy_(weights["layer_matrix"])


def arguments(config: DistillConfig, folder: Path, device: torch.device) -> TrainingArguments:
    """transformers.TrainingArguments of a run: bf16 autocast on a GPU, float32 elsewhere, unless `trainer` says otherwise."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "warmup_steps": min(config.warmup_steps, config.steps),
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(config.schedule, config.schedule),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip_norm,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "logging_steps": config.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": config.eval_every,
        "eval_on_start": False,
        "save_strategy": "steps",
        "save_steps": config.eval_every,
        "report_to": [name.strip() for name in config.report_to.split(",")],
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        # Named without other processes, accelerate would expect a group that nobody made.
        "ddp_backend": "gloo" if device.type == "cpu" and int(os.environ.get("WORLD_SIZE", 1)) > 1 else None,
        # Without cross-entropy or logit KD the head over the vocabulary has no gradient.
        "ddp_find_unused_parameters": not (config.loss_config.alpha_ce or config.loss_config.alpha_kd),
    }
    return TrainingArguments(**values | dict(config.trainer))
