"""Matrix folders as a queue would leave them, made without training: figures made up, answers drawn by a seed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from kvviz.distill.answers import answers_path
from kvviz.distill.arms import ARMS, MatrixConfig
from kvviz.distill.config import DistillConfig
from kvviz.distill.matrix import Cell, Matrix
from kvviz.distill.status import RunState, Status, write_state

PROBLEMS, STEPS = 40, 20
SKILL = {"flat": 0.5, "random": 0.4, "uniform": 0.45, "per-head": 0.5, "fitted": 0.55, "none": 0.6}


def made_matrix(root: Path, name: str = "ab", arms=tuple(ARMS), seeds=(0, 1, 2), **base) -> Matrix:
    """A matrix without any run yet, and without a process."""
    config = MatrixConfig(
        arms=arms,
        seeds=seeds,
        base=DistillConfig(**({"steps": STEPS, "eval_examples": PROBLEMS} | base)),
    )
    return Matrix.create(config, root, name)


def cell_of(matrix: Matrix, arm: str, seed: int) -> Cell:
    return next(cell for cell in matrix.cells() if (cell.arm, cell.seed) == (arm, seed))


def made_cell(
    matrix: Matrix,
    arm: str,
    seed: int,
    status: Status = "finished",
    *,
    step: int = STEPS,
    message: str = "",
    right: np.ndarray | None = None,
) -> Cell:
    """A run of the matrix; a finished one has its figures, and `right` says which problems it solved."""
    cell = cell_of(matrix, arm, seed)
    config = matrix.config.config(arm, seed)
    cell.run.prepare(config)
    now = time.time()
    cell.run.append({"step": 0, "time": now, "accuracy": 0.25, "eval_k_loss": 1.0})
    cell.run.append({"step": 1, "time": now + 2, "loss": 1.0, "cpu_seconds": 1.0})
    if status == "finished":
        if right is None:
            right = np.random.default_rng([seed, list(ARMS).index(arm)]).random(PROBLEMS) < SKILL[arm]
        place = list(ARMS).index(arm)
        cell.run.append(
            {
                "step": step,
                "time": now + 100 + place,
                "cpu_seconds": 41.0 + place,
                "eval_ce_loss": 0.15 + place / 100,
                "eval_k_loss": 0.2 + place / 100,
                "eval_v_loss": 0.3,
                "eval_attn_loss": 0.4,
                "k_r2": -0.5 + place / 10,
                "k_spread": 0.7,
                "v_spread": 0.6,
                "accuracy": float(right.mean()),
            }
        )
        answers(cell, right)
    write_state(cell.run.folder, RunState(status, step, config.steps, message, created=now, updated=now))
    return cell


def answers(cell: Cell, right: np.ndarray, prompt: str = "problem {}") -> None:
    """What the run wrote at its end: `right`, problem by problem."""
    path = answers_path(cell.run, STEPS)
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"index": i, "prompt": prompt.format(i), "expected": "1", "written": "1", "correct": bool(one)}
        for i, one in enumerate(right)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ended(matrix: Matrix, status: Status = "finished", message: str = "") -> None:
    """The queue's last word."""
    before = matrix.state()
    write_state(
        matrix.folder,
        RunState(status, before.steps, before.steps, message, created=before.created, updated=time.time()),
    )
