"""A run is a folder, and the folder is the whole truth. Any process may read it at any time; only the run's own writes.

config.yaml                      what started it: a DistillConfig
status.json                      replaced as a whole (kvviz.distill.status)
metrics.jsonl                    one line a log, never rewritten (kvviz.distill.metrics)
log.txt                          what its process printed
stop                             while it exists, the run is asked to stop
checkpoints/checkpoint-<step>/   a Hugging Face folder of the student, projectors.safetensors beside it;
                                 there only once it holds a file `complete`
snapshots/step-<6 digits>.safetensors   the projectors at each log
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from kvviz.config import ConfigError
from kvviz.distill import metrics as metrics_file
from kvviz.distill import status as status_file
from kvviz.distill.config import DistillConfig
from kvviz.distill.metrics import MetricsTail
from kvviz.distill.problems import RunBusy, RunError, RunGone, gone_if_missing
from kvviz.distill.process import ProcessMark
from kvviz.distill.status import RunState, Status, locked, read_state, read_written, write_state

__all__ = [
    "MetricsTail",
    "Run",
    "RunBusy",
    "RunError",
    "RunGone",
    "RunState",
    "Status",
    "list_runs",
    "runs_root",
]

CONFIG = "config.yaml"
LOG = "log.txt"
COMPLETE = "complete"  # written last into a checkpoint: one without it was cut short
PROJECTORS = "projectors.safetensors"
LOG_BYTES = 256_000  # The most of a log that is read for its last lines.


def runs_root() -> Path:
    """Where runs live: the environment's KVVIZ_RUNS, else `runs` in the working folder."""
    return Path(os.environ.get("KVVIZ_RUNS") or "runs").absolute()


@dataclass(frozen=True)
class Run:
    """One run, by its folder. Holds nothing else: two objects for one folder are the same run.

    Every method raises RunGone if the folder is not there (any more).
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).absolute())

    @classmethod
    def create(cls, config: DistillConfig, root: Path | None = None) -> Self:
        """A new folder under `root` (`runs_root()` if left out) with a name nobody has; queued, without a process yet.

        It appears under its name at once and whole, so nobody lists half of it.

        Raises:
            OSError: the folder cannot be written.
        """
        root = runs_root() if root is None else Path(root).absolute()
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.kv_projection_mode}-seed{config.seed}"
        draft = root / f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        draft.mkdir(parents=True)
        try:
            cls(draft).prepare(config)
            number = 1
            while True:
                folder = root / (name if number == 1 else f"{name}-{number}")
                try:
                    draft.rename(folder)  # onto a folder that holds anything: refused by the system
                    return cls(folder)
                except OSError:
                    if not folder.exists():
                        raise
                number += 1
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def prepare(self, config: DistillConfig) -> None:
        """Write what a run starts with into the folder: configuration, status, and the reserve for a full disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        (self.folder / CONFIG).write_text(config.to_whole_yaml(), encoding="utf-8")
        status_file.reserve(self.folder)
        write_state(self.folder, RunState("queued", steps=config.steps, created=now, updated=now))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def config(self) -> DistillConfig:
        """What started it.

        Raises:
            ConfigError: config.yaml is missing or cannot be used.
        """
        path = self.folder / CONFIG
        try:
            with gone_if_missing(self.folder):
                status = path.stat()
        except RunGone:
            raise
        except OSError as error:
            raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
        return _config(path, status.st_ino, status.st_mtime_ns, status.st_size)

    def differences(self) -> dict[str, Any]:
        """The keys of its configuration that are not at their default, in JSON types; ConfigError as `config`."""
        return self.config.differences()

    def state(self) -> RunState:
        """How it stands now: what its process last wrote, and `stopping` and `lost` as a reader sees them.

        A status that cannot be read, or a configuration of an ended run, makes it `failed` with the reason.
        """
        state = read_state(self.folder)
        if not state.alive and state.status != "failed":
            try:
                _ = self.config
            except ConfigError as error:
                return replace(state, status="failed", message=str(error))
        return state

    def write_status(
        self,
        status: Status,
        *,
        step: int | None = None,
        steps: int | None = None,
        message: str = "",
        device: str | None = None,
    ) -> None:
        """Say how this process stands. `step`, `steps` and `device` stay as they are unless given.

        Only the run's own process may: it is the one whose end makes the run lost.
        """
        with locked(self.folder):
            self.put_status(
                status, step=step, steps=steps, message=message, device=device, process=ProcessMark.of()
            )

    def put_status(
        self,
        status: Status,
        *,
        step: int | None = None,
        steps: int | None = None,
        message: str = "",
        device: str | None = None,
        process: ProcessMark | None,
        host: str = "",
    ) -> None:
        """As `write_status`, for another process, under a lock the caller holds; without one, for `host` to start."""
        try:
            before = read_written(self.folder)
        except RunGone:
            raise
        except (OSError, ValueError):
            before = RunState("queued", created=time.time())
        after = replace(
            before,
            status=status,
            step=before.step if step is None else step,
            steps=before.steps if steps is None else steps,
            message=message,
            pid=process.pid if process else None,
            pid_started=process.started if process else None,
            host=process.host if process else host,
            device=before.device if device is None else device,
            updated=time.time(),
        )
        write_state(self.folder, after)

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; it needs a `step`, its `time` is filled in. A line once written stays.

        Raises:
            ValueError: there is no step. OSError: the disk is full.
        """
        metrics_file.append_metrics(self.folder / metrics_file.FILE, metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary a step, in order; of a key written twice for a step, the later value."""
        return self.tail().read()

    def tail(self) -> MetricsTail:
        """A reader that follows the metrics as they are written."""
        return MetricsTail(self.folder / metrics_file.FILE)

    def checkpoints(self) -> list[int]:
        """The steps of its complete checkpoints, sorted."""
        found = _numbered(self.folder, "checkpoints", r"checkpoint-(\d+)")
        return [step for step in found if (self.checkpoint(step) / COMPLETE).exists()]

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / "checkpoints" / f"checkpoint-{step}"

    def latest_checkpoint(self) -> Path | None:
        """The last complete checkpoint's folder; None before the first."""
        steps = self.checkpoints()
        return self.checkpoint(steps[-1]) if steps else None

    def snapshots(self) -> list[int]:
        """The steps at which the projectors were kept, sorted."""
        return _numbered(self.folder, "snapshots", r"step-(\d+)\.safetensors")

    def snapshot_path(self, step: int) -> Path:
        """The file of a step's projectors."""
        return self.folder / "snapshots" / f"step-{step:06d}.safetensors"

    @property
    def log_path(self) -> Path:
        """What its process prints."""
        return self.folder / LOG

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of log.txt; empty before there is one."""
        try:
            with self.log_path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - LOG_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError as error:
            if not self.folder.is_dir():
                raise RunGone(self.folder) from error
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def request_stop(self) -> None:
        """Ask the run to finish its step, write a checkpoint and stop."""
        with gone_if_missing(self.folder):
            (self.folder / status_file.STOP).touch()

    def stop_requested(self) -> bool:
        """Whether it was asked to stop; also where its folder is gone: there is nothing left to write to."""
        return (self.folder / status_file.STOP).exists() or not self.folder.is_dir()

    def clear_stop(self) -> None:
        """Take the request back."""
        (self.folder / status_file.STOP).unlink(missing_ok=True)


def list_runs(root: Path | None = None) -> list[Run]:
    """The runs under `root` (`runs_root()` if left out), newest first. What cannot be read is listed, as failed."""
    root = runs_root() if root is None else Path(root).absolute()
    found = []
    try:
        entries = list(os.scandir(root))
    except FileNotFoundError:
        return []
    for entry in entries:
        folder = Path(entry.path)
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if not ((folder / CONFIG).exists() or (folder / status_file.FILE).exists()):
            continue
        run = Run(folder)
        try:
            found.append((run.state().created, run.name, run))
        except RunGone:
            continue  # Deleted between the two looks.
    return [run for _, _, run in sorted(found, key=lambda item: item[:2], reverse=True)]


@lru_cache(maxsize=256)
def _config(path: Path, inode: int, changed: int, size: int) -> DistillConfig:
    """A configuration, read once a version of its file: pages ask for it every second."""
    return DistillConfig.from_yaml(path)


def _numbered(folder: Path, inside: str, pattern: str) -> list[int]:
    """The numbers in the names inside a subfolder that match a pattern, sorted."""
    try:
        names = os.listdir(folder / inside)
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise RunGone(folder) from error
        return []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))
