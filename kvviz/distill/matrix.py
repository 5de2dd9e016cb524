"""An A/B matrix: a folder that says which runs belong together, and the one queue that makes them.

    runs/matrices/<name>/   matrix.yaml, status.json, log.txt, stop, ab.md, ab.json
    runs/<name>-<arm>-seed<k>/   the runs themselves, like any other

What is finished stays; starting a matrix again goes on with the rest.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.arms import MatrixConfig
from kvviz.distill.problems import RunError, RunGone
from kvviz.distill.run import Run, runs_root
from kvviz.distill.slots import runs_at_once
from kvviz.distill.status import RunState, read_state, write_state
from kvviz.errors import ExplainedError

FOLDER = "matrices"
CONFIG = "matrix.yaml"
POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a matrix."""

    arm: str
    seed: int
    run: Run

    @property
    def state(self) -> RunState | None:
        """How it stands; None before it was begun, and where its folder was deleted."""
        try:
            return self.run.state()
        except RunGone:
            return None


@dataclass(frozen=True)
class Matrix:
    """A matrix's folder; everything else is read from it."""

    folder: Path

    @classmethod
    def create(cls, config: MatrixConfig, root: Path | None = None, name: str | None = None) -> Matrix:
        """A new folder below `root` (`runs_root()` if left out).

        Raises:
            RunError: the name is taken, or cannot be a folder's. OSError: the folder cannot be written.
        """
        root = runs_root() if root is None else Path(root).absolute()
        name = name or f"ab-{time.strftime('%Y%m%d-%H%M%S')}"
        if not re.fullmatch(r"[\w][\w.-]{0,80}", name):
            raise RunError(
                f"A matrix cannot be called {name}.",
                "Its name becomes part of its runs' folders.",
                "Use letters, digits, dots, dashes and underscores.",
            )
        folder = root / FOLDER / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise RunError(
                f"There is a matrix {name} already.",
                f"It is in {folder}.",
                "Go on with it by giving its folder, or choose another name.",
            ) from error
        (folder / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
        now = time.time()
        steps = len(config.arms) * len(config.seeds)
        write_state(folder, RunState("queued", steps=steps, created=now, updated=now))
        return cls(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> MatrixConfig:
        """What is compared.

        Raises:
            ConfigError: matrix.yaml is missing or cannot be used.
        """
        try:
            text = (self.folder / CONFIG).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.folder} is no matrix: {CONFIG} cannot be read: {error}") from error
        return MatrixConfig.from_yaml(text, str(self.folder / CONFIG))

    @property
    def process(self) -> Run:
        """The queue's own status, stop request and log: kept as a run keeps its own."""
        return Run(self.folder)

    def state(self) -> RunState:
        """How the queue stands: `step` of `steps` runs ended.

        Raises:
            RunGone: its folder is not there.
        """
        return read_state(self.folder)

    def cells(self) -> list[Cell]:
        """Its runs, seed by seed, so that what is done is comparable at any time."""
        config, root = self.config, self.folder.parent.parent
        return [
            Cell(arm, seed, Run(root / f"{self.name}-{arm}-seed{seed}"))
            for seed in config.seeds
            for arm in config.arms
        ]


def list_matrices(root: Path | None = None) -> list[Matrix]:
    """The matrices below `root`, newest first."""
    root = runs_root() if root is None else Path(root).absolute()
    folders = [path.parent for path in (root / FOLDER).glob(f"*/{CONFIG}")]
    found = []
    for folder in folders:
        try:
            found.append((read_state(folder).created, folder.name, Matrix(folder)))
        except RunGone:
            continue  # Deleted between the two looks.
    return [matrix for _, _, matrix in sorted(found, key=lambda item: item[:2], reverse=True)]


def make(matrix: Matrix, changed: Callable[[], object]) -> Literal["finished", "stopped"]:
    """Make the runs that are not finished, as many at once as the setting allows; `changed` is called when one ended.

    A run that fails does not keep the others from being made. A stop request is passed on to the runs that live.

    Raises:
        ConfigError: the matrix cannot be used.
    """
    config, queue = matrix.config, matrix.cells()
    status, at_once = matrix.process, runs_at_once()
    waiting = [cell for cell in queue if _to_do(cell)]
    live: list[Cell] = [cell for cell in queue if cell.state is not None and cell.state.alive]
    waiting = [cell for cell in waiting if cell not in live]
    while waiting or live:
        done = len(queue) - len(waiting) - len(live)
        if status.stop_requested():
            for cell in live:
                launch.stop(cell.run)
            status.write_status("stopping", step=done, steps=len(queue))
            return "stopped"
        while waiting and len(live) < at_once:
            cell = waiting.pop(0)
            try:
                _begin(cell, config)
            except (ExplainedError, ConfigError) as error:
                log.warning("%s was not made: %s", cell.run.name, error)
                if cell.state is None or not cell.state.alive:
                    changed()
                    continue
            live.append(cell)
        names = ", ".join(cell.run.name for cell in live)
        status.write_status("running", step=done, steps=len(queue), message=names)
        time.sleep(POLL_SECONDS)
        ended = [cell for cell in live if cell.state is None or not cell.state.alive]
        if ended:
            live = [cell for cell in live if cell not in ended]
            changed()
    status.write_status("running", step=len(queue), steps=len(queue))
    return "finished"


def _begin(cell: Cell, config: MatrixConfig) -> None:
    """Start a cell's process; one that somebody else took up meanwhile is theirs."""
    if cell.state is None:
        cell.run.prepare(config.config(cell.arm, cell.seed))
    launch.resume(cell.run)


def _to_do(cell: Cell) -> bool:
    return cell.state is None or cell.state.status != "finished"
