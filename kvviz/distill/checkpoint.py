"""A run at one step: which student it is, and which projectors go with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kvviz.distill.problems import RunError
from kvviz.distill.run import PROJECTORS, Run
from kvviz.errors import sentence

PREFIX = "projectors."


@dataclass(frozen=True)
class Stage:
    """A step of a run that can be looked at: 0 is its start, any other a checkpoint.

    Attributes:
        student: what to load, as a `ModelSpec` takes it. projectors: the file that holds them.
    """

    run: Run
    step: int
    student: str
    projectors: Path

    @property
    def fingerprint(self) -> str:
        """Changes when the projectors' file does."""
        status = self.projectors.stat()
        return f"{self.projectors}:{status.st_mtime_ns}:{status.st_size}"


def stages(run: Run) -> list[int]:
    """The steps that can be looked at: the start, where its projectors were kept, and every complete checkpoint.

    Raises:
        RunGone: the run's folder is not there.
    """
    return ([0] if 0 in run.snapshots() else []) + [step for step in run.checkpoints() if step > 0]


def stage(run: Run, step: int) -> Stage:
    """A run at a step.

    Raises:
        RunGone: the run's folder is not there. ConfigError: its configuration cannot be used.
        RunError: it has nothing to load at that step.
    """
    there = stages(run)
    if step not in there:
        words = f"It has {', '.join(map(str, there))}." if there else "It has none yet."
        raise RunError(
            f"Run {run.name} has no checkpoint at step {step}.", words, "Choose another, or another run."
        )
    if step == 0:
        return Stage(run, 0, run.config.student, run.snapshot_path(0))
    folder = run.checkpoint(step)
    return Stage(run, step, str(folder), folder / PROJECTORS)


def read_projectors(at: Stage) -> dict[str, Tensor]:
    """The projectors' weights by name (`k.head_mixer`, …), the layer map as `layer_matrix`.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        found = load_file(at.projectors)
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(
            f"The projectors of run {at.run.name} at step {at.step} cannot be read.",
            sentence(error),
            "Choose another checkpoint.",
        ) from error
    if at.step > 0:
        return found
    return {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}
