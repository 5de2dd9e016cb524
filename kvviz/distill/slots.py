"""Who may use a device: one run at a time by default, the others wait in the order they were made.

There is no daemon. Each run's process waits for itself and then holds a lock that the kernel frees when the process
ends, however it ends. It holds with any number of servers and shells on one folder of runs.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from kvviz.config import ConfigError
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import Run, RunGone, list_runs

SETTING = "KVVIZ_RUNS_AT_ONCE"
POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = (
    30.0  # A run that waits says so this often: on another host that is all one can know of it.
)


@dataclass(frozen=True)
class Slot:
    """The right to use a device, until released or until the process ends."""

    file: int

    def release(self) -> None:
        """Let the next run in."""
        os.close(self.file)


class _NoSlot(Slot):
    """What a process holds that uses no device."""

    def release(self) -> None:
        """Nobody waits for it."""


NO_SLOT = _NoSlot(-1)


def runs_at_once() -> int:
    """How many runs may share a device: the environment's KVVIZ_RUNS_AT_ONCE, 1 if unset.

    Raises:
        ConfigError: it is no whole number from 1 up.
    """
    text = os.environ.get(SETTING) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{SETTING}: {text!r} is not usable (it takes a whole number from 1 up)")
    return int(text)


def device_name(config: DistillConfig) -> str:
    """What a run of this configuration uses on this host: "cpu", "mps" or "cuda", with the GPUs it is given.

    Found out without torch, which takes seconds to import: a run in the queue should cost nothing.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    device: str = config.device
    if device == "auto":
        has_gpu = Path("/proc/driver/nvidia/gpus").exists() and visible not in ("", "-1")
        device = "cuda" if has_gpu else "mps" if os.uname().sysname == "Darwin" else "cpu"
    if device == "cuda" and visible:
        device += f"-{visible}"
    if job := os.environ.get("SLURM_JOB_ID"):
        device += f"-job{job}"  # Slurm has given the job its devices, and gives them to nobody else.
    return re.sub(r"[^\w-]+", "_", device)


def wait_for_slot(run: Run) -> Slot | None:
    """Wait until this process, whose status is queued, may use its device; None if it is asked to stop before.

    Raises:
        ConfigError: the setting is not usable. RunGone: the folder was deleted meanwhile.
    """
    device = device_name(run.config)
    places = [_place(run.folder.parent, device, number) for number in range(runs_at_once())]
    said, said_at = "", 0.0
    run.write_status("queued", device=device)
    while not run.stop_requested():
        ahead, using = _others(run, device)
        if not ahead:
            for place in places:
                slot = _take(place)
                if slot is not None:
                    return slot
        message = _waiting(device, ahead, using)
        if message != said or time.monotonic() - said_at > HEARTBEAT_SECONDS:
            run.write_status("queued", message=message)
            said, said_at = message, time.monotonic()
        time.sleep(POLL_SECONDS)
    if not run.folder.is_dir():
        raise RunGone(run.folder)
    return None


def _place(root: Path, device: str, number: int) -> Path:
    return root / ".slots" / f"{socket.gethostname()}-{device}-{number}.lock"


def _take(place: Path) -> Slot | None:
    """Lock a slot's file without waiting; None if another process has it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return Slot(file)


def _others(run: Run, device: str) -> tuple[list[str], list[str]]:
    """The names of the runs that wait for this device and were made earlier, and of those that use it."""
    mine = run.state()
    ahead, using = [], []
    for other in list_runs(run.folder.parent):
        if other.folder == run.folder:
            continue
        try:
            state = other.state()
        except RunGone:
            continue
        if not state.alive or state.process is None or not state.process.here or state.device != device:
            continue
        if state.status != "queued":
            using.append(other.name)
        elif (state.created, other.name) < (mine.created, run.name):
            ahead.append(other.name)
    return ahead, using


def _waiting(device: str, ahead: list[str], using: list[str]) -> str:
    """What a run that waits says: who has the device, and how many come first."""
    message = f"Waits for {device}"
    if using:
        message += f": {', '.join(using[:2])} {'uses' if len(using) == 1 else 'use'} it"
    if ahead:
        message += f"; {len(ahead)} before it in the queue"
    return message + "."
