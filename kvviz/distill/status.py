"""status.json: what a run's process last said of itself, and what a reader makes of it.

The file is replaced as a whole, so a reader never sees half of it. A process that is killed says nothing more: that it
is lost is found out by whoever reads.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from kvviz.distill.problems import RunGone, gone_if_missing
from kvviz.distill.process import ProcessMark

Status = Literal["queued", "starting", "running", "stopping", "stopped", "finished", "failed", "lost"]

FILE = "status.json"
STOP = "stop"
ALIVE = frozenset({"queued", "starting", "running", "stopping"})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LAUNCH_SECONDS = 60.0  # How long a run may stay without a process: between its folder and its start.
RESERVE = ".reserve"
RESERVE_BYTES = 16_384
RANK_ERROR = "rank-{}.error"
FRESH_NS = 2_000_000_000


@dataclass(frozen=True)
class RunState:
    """A run's state at one moment.

    Attributes:
        pid, pid_started, host: the process that writes; None before there is one. Under torchrun it is rank 0's.
        step, steps: done and planned. message: one or a few lines for a person.
        created, updated: seconds since 1970; `updated` is when the run was last heard of.
        device: what it waits for or runs on, as `kvviz.distill.slots` names it.
    """

    status: Status
    step: int = 0
    steps: int = 0
    message: str = ""
    pid: int | None = None
    pid_started: float | None = None
    host: str = ""
    device: str = ""
    created: float = 0.0
    updated: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it has yet to end, as far as can be known."""
        return self.status in ALIVE

    @property
    def process(self) -> ProcessMark | None:
        """Its process, if one has taken it."""
        if self.pid is None or self.pid_started is None:
            return None
        return ProcessMark(self.pid, self.pid_started, self.host)

    @property
    def elsewhere(self) -> bool:
        """Whether it claims to live where nobody here can look: on another host, or in a cluster's queue."""
        if not self.alive:
            return False
        process = self.process
        return not process.here if process else bool(self.host)


def read_state(folder: Path) -> RunState:
    """What status.json says, corrected by what can be seen: `stopping` and `lost` are found out here.

    A file that cannot be read makes the state `failed` and says why.

    Raises:
        RunGone: the folder is not there.
    """
    try:
        written = read_written(folder)
    except RunGone:
        raise
    except (OSError, ValueError) as error:
        return RunState("failed", message=f"{FILE} cannot be read: {error}", created=_changed(folder))
    if not written.alive:
        return written
    process = written.process
    if written.elsewhere:
        heard = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written.updated))
        note = f"On {written.host}, where this host cannot look; last heard of {heard}."
        written = replace(written, message=f"{written.message}\n{note}".lstrip())
    elif process is None and time.time() - written.created > LAUNCH_SECONDS:
        return replace(written, status="lost", message="Its process never started; resume to start it.")
    elif process is not None and process.find() is None:
        # It may have ended between the two looks: then it said so before it went.
        again = read_written(folder)
        if again != written:
            return read_state(folder)
        return replace(written, status="lost", message=_lost(written, folder))
    if (folder / STOP).exists():
        return replace(written, status="stopping")
    return written


def read_written(folder: Path) -> RunState:
    """status.json as it stands.

    Raises:
        RunGone: the folder is not there. OSError, ValueError: the file cannot be read, or holds something else.
    """
    path = folder / FILE
    with gone_if_missing(folder):
        changed = path.stat().st_mtime_ns
        # An old file is parsed once, however many processes ask each second; of one just replaced, nothing is kept:
        # another version may bear the same time.
        if time.time_ns() - changed > FRESH_NS:
            return _parse_old(path, changed)
        return _parse(path)


@lru_cache(maxsize=4096)
def _parse_old(path: Path, changed: int) -> RunState:
    return _parse(path)


def _parse(path: Path) -> RunState:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("status") not in get_args(Status):
        raise ValueError("it holds no status")
    known = {name: values[name] for name in RunState.__dataclass_fields__ if name in values}
    state = RunState(**known)
    numbers = (state.step, state.steps, state.created, state.updated, state.pid or 0, state.pid_started or 0)
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("it holds text where a number belongs")
    return state


def write_state(folder: Path, state: RunState) -> None:
    """Replace status.json. On a full disk the run's small reserve is given up for its last words, and only for those.

    Raises:
        RunGone: the folder is not there. OSError: it cannot be written.
    """
    text = json.dumps(asdict(state), indent=1)
    with gone_if_missing(folder):
        try:
            _replace(folder / FILE, text)
        except OSError as error:
            if error.errno not in FULL or state.alive:
                raise
            (folder / RESERVE).unlink(missing_ok=True)
            _replace(folder / FILE, text)


def reserve(folder: Path) -> None:
    """Set a few blocks aside, so that a run on a disk that fills up can still say so."""
    (folder / RESERVE).write_bytes(os.urandom(RESERVE_BYTES))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock: for reading a state and writing the next one as one act. Freed by the kernel on a kill.

    Raises:
        RunGone: the folder is not there.
    """
    with gone_if_missing(folder):
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, is a full disk (or quota)."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        # safetensors and torch report the system's error in words only.
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _lost(state: RunState, folder: Path) -> str:
    message = f"Its process {state.pid} is gone without a word after step {state.step}."
    filesystem = os.statvfs(folder)
    if filesystem.f_bavail * filesystem.f_frsize < RESERVE_BYTES:
        message += " The disk that holds it is full: free some space first."
    message += " Resume it to go on from its last checkpoint."
    return "\n".join([message, *rank_errors(folder)])


def rank_errors(folder: Path) -> list[str]:
    """What ranks other than 0 failed with: rank 0, which writes the status, sees only that a peer has gone."""
    found = []
    for path in sorted(folder.glob(RANK_ERROR.format("*"))):
        try:
            found.append(path.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            continue  # Cleared by a resume meanwhile.
    return found


def _changed(folder: Path) -> float:
    with gone_if_missing(folder):
        return folder.stat().st_mtime
