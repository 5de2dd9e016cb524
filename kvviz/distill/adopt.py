"""A folder that is named beforehand becomes a run's: by `--run-dir`, or because a page or a cluster made it."""

from __future__ import annotations

from pathlib import Path

from kvviz.config import ConfigError
from kvviz.distill.config import DistillConfig
from kvviz.distill.problems import RunError
from kvviz.distill.process import ProcessMark
from kvviz.distill.run import CONFIG, LOG, Run
from kvviz.distill.status import FILE, locked, read_state

HARMLESS = {CONFIG, LOG}


def awaits(run: Run) -> bool:
    """Whether the folder is a run that was made for this very process: queued, and nobody else's."""
    if not (run.folder / FILE).exists():
        return False
    # Whoever starts a process holds the lock until its pid is written.
    with locked(run.folder):
        state = read_state(run.folder)
    mark = state.process
    mine = mark is None or (mark.here and mark.pid == ProcessMark.of().pid)
    return state.status in ("queued", "stopping") and mine


def adopt(folder: Path, config: DistillConfig) -> Run:
    """Make a folder a run of this configuration: one that does not exist, is empty, or holds its config.yaml.

    Raises:
        RunError: it is a run already, holds another configuration, or something else. OSError: it cannot be written.
    """
    run = Run(folder)
    if run.folder.exists() and not run.folder.is_dir():
        raise RunError(f"--run-dir: {folder} cannot hold a run.", "It is a file.", "Name another folder.")
    if awaits(run):
        return run
    if (run.folder / FILE).exists():
        raise RunError(
            f"--run-dir: {folder} holds a run.",
            f"It is {read_state(run.folder).status}; a new run would mix with it.",
            f"Go on with it by `kvviz resume {folder}`, or name another folder.",
        )
    names = {path.name for path in run.folder.iterdir()} if run.folder.is_dir() else set()
    if others := sorted(name for name in names - HARMLESS if not name.startswith(".")):
        raise RunError(
            f"--run-dir: {folder} is not empty.",
            f"It holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}.",
            "Name a folder that does not exist yet.",
        )
    if CONFIG in names and _other(run, config):
        raise RunError(
            f"--run-dir: {folder} holds another configuration.",
            f"Its {CONFIG} is not what this run was asked for.",
            "Name a folder that does not exist yet.",
        )
    run.prepare(config)
    return run


def _other(run: Run, config: DistillConfig) -> bool:
    try:
        return run.config != config
    except ConfigError:
        return True
