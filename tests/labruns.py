"""Run folders as a run would leave them, made without training: real checkpoints of the bundled student, figures made up."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from kvviz import bundled
from kvviz.align.aligner import MapProjectionAligner
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import Run
from kvviz.distill.status import RunState, Status, write_state
from kvviz.geometry import Geometry

EVALUATE, LOG = 10, 5


def made_run(
    root: Path,
    name: str,
    *,
    status: Status = "finished",
    step: int = 20,
    message: str = "",
    created: float | None = None,
    seed: int = 0,
    **config,
) -> Run:
    """A run with `step` steps done: metrics every 5, evaluations and checkpoints every 10, a snapshot each."""
    config = DistillConfig(
        **({"steps": 20, "eval_every": EVALUATE, "eval_examples": 40, "seed": seed} | config)
    )
    run = Run(root / name)
    run.prepare(config)
    now = time.time() if created is None else created
    for row in rows(config, step, now, seed):
        run.append(row)
        snapshot(run, config, row["step"])
    for done in range(EVALUATE, step + 1, EVALUATE):
        checkpoint(run, config, done)
    write_state(run.folder, RunState(status, step, config.steps, message, created=now, updated=now))
    return run


def rows(config: DistillConfig, step: int, began: float, seed: int) -> list[dict]:
    """Losses that fall, a spread that narrows, an accuracy that rises."""
    found = []
    for done in sorted({0, 1, *range(LOG, step + 1, LOG)} & set(range(step + 1))):
        fall = math.exp(-done / max(config.steps, 1) * (1 + 0.3 * seed))
        row: dict = {"step": done, "time": began + 2.0 * done}
        terms = {
            "ce_loss": 0.2 * fall + 0.1,
            "k_loss": 0.3 * fall,
            "v_loss": 0.6 * fall,
            "attn_loss": 0.7 * fall,
        }
        total = sum(terms.values())
        if done:
            row |= terms | {"loss": total, "tokens_seen": 2700 * done, "learning_rate": 1e-3 * fall}
        if done % EVALUATE == 0:
            row |= {f"eval_{term}": 1.05 * value for term, value in terms.items()} | {
                "eval_loss": 1.05 * total
            }
            row |= {
                "k_spread": 0.9 * fall,
                "v_spread": 0.6 * fall,
                "k_r2": 0.9 - 0.5 * fall,
                "v_r2": 0.7 - 0.5 * fall,
            }
            right = 0.8 - 0.5 * fall
            row |= {"accuracy": right, "accuracy_low": right - 0.12, "accuracy_high": right + 0.12}
        found.append(row)
    return found


def aligner(config: DistillConfig, step: int = 0) -> MapProjectionAligner:
    """The projectors of a step: those of the start, moved a little where they are trained."""
    geometries = (Geometry.from_config(_config(role)) for role in ("teacher", "student"))
    made = MapProjectionAligner.from_config(*geometries, config)
    if config.aligner == "trained":
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(1 + 0.05 * step)
    return made


def snapshot(run: Run, config: DistillConfig, step: int) -> None:
    """Maps of errors that fall, and the projectors where a run keeps them."""
    torch.manual_seed(7)
    fall = math.exp(-step / config.steps)
    tensors = {"attention_kl": torch.rand(4, 4) * fall}
    for part in ("k", "v"):
        tensors |= {f"{part}.{name}": torch.rand(4, 2) * fall for name in ("relative_error", "cosine", "r2")}
        tensors[f"{part}.norm_ratio"] = 1 + (torch.rand(4, 2) - 0.5) * fall
    if step == 0 or config.aligner == "trained":
        tensors |= {f"projectors.{name}": value for name, value in weights(config, step).items()}
    path = run.snapshot_path(step)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)


def weights(config: DistillConfig, step: int) -> dict[str, torch.Tensor]:
    """The projectors as a checkpoint holds them."""
    made = aligner(config, step)
    found = {name: value.contiguous() for name, value in made.projectors.state_dict().items()}
    return found | {"layer_matrix": made.layer_matrix.contiguous()}


def checkpoint(run: Run, config: DistillConfig, step: int) -> None:
    """A checkpoint: the bundled student as it is, the projectors of the step."""
    folder = run.checkpoint(step)
    shutil.copytree(bundled.path("student"), folder)
    save_file(weights(config, step), folder / "projectors.safetensors")
    (folder / "complete").touch()


def _config(role):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(bundled.path(role))
