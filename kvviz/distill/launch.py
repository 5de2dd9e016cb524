"""What a page or a command does with runs from outside: start one, go on with one, stop one, delete one.

A run is started in a session of its own: it outlives the page, the browser and the server.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvviz.distill.config import DistillConfig
from kvviz.distill.problems import RunBusy, RunError, RunGone, gone_if_missing
from kvviz.distill.process import ProcessMark
from kvviz.distill.run import CONFIG, Run
from kvviz.distill.slots import device_name
from kvviz.distill.status import RunState, locked, read_state
from kvviz.distill.supervise import refuse_if_alive

GRACE_SECONDS = 30.0
POLL_SECONDS = 0.2
KILL_SECONDS = 10.0
PROGRAM = (sys.executable, "-m", "kvviz")
AGENTS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")


def launch(config: DistillConfig, root: Path | None = None) -> Run:
    """Write a run's folder and start its process, which waits in the queue for its device.

    Raises:
        OSError: the folder cannot be written. RunError: the process cannot be started; the run is then failed.
    """
    run = Run.create(config, root)
    with locked(run.folder):
        command = [*PROGRAM, "distill", str(run.folder / CONFIG), "--run-dir", str(run.folder)]
        start_process(run, command, device_name(run.config))
    return run


def resume(run: Run, *, force: bool = False) -> None:
    """Start a process that goes on with a run from its last checkpoint.

    force: also where it may live on another host.

    Raises:
        RunBusy: its process lives. RunError: it is finished, or the process cannot be started.
        ConfigError: its configuration cannot be used. RunGone: it is not there.
    """
    with locked(run.folder):
        refuse_resume(run, force=force)
        run.clear_stop()
        start_process(run, [*PROGRAM, "resume", str(run.folder)], device_name(run.config))


def refuse_resume(run: Run, *, force: bool = False) -> None:
    """Raise what `resume` raises for a run that cannot go on."""
    refuse_if_alive(run, "resume", force=force)
    if read_state(run.folder).status == "finished":
        raise RunError(
            f"Cannot resume {run.name}.",
            "It is finished: all its steps are done.",
            "Start a new run from its config.yaml, with more steps.",
        )
    _ = run.config


def stop(run: Run, grace: float = GRACE_SECONDS) -> RunState:
    """Ask a run to stop; after `grace` seconds end its processes. Waits for either; returns the state it ends in.

    A run on another host is asked only, and returned as it stands.

    Raises:
        RunGone: it is not there. RunError: its processes belong to somebody else.
    """
    state = run.state()
    if not state.alive:
        return state
    run.request_stop()
    if state.elsewhere:
        return run.state()
    end = time.monotonic() + grace
    while (state := run.state()).alive:
        if time.monotonic() >= end and state.process is not None:
            return _end(run, state, grace)
        time.sleep(POLL_SECONDS)
    return state


def delete(run: Run, *, force: bool = False) -> None:
    """Remove a run's folder with all in it.

    Raises:
        RunBusy: its process lives. RunGone: it is not there.
    """
    with locked(run.folder):
        refuse_if_alive(run, "delete", force=force)
        # Under a hidden name it is gone from every list at once, however long the removal takes.
        hidden = run.folder.with_name(f".{run.name}.deleted.{os.getpid()}")
        with gone_if_missing(run.folder):
            run.folder.rename(hidden)
    shutil.rmtree(hidden)


@dataclass(frozen=True)
class CommandLine:
    """A command for the launch page: what it is for, and what to paste into a shell."""

    title: str
    command: str


def command_lines(config_path: Path | str, *, processes: int = 2, nodes: int = 2) -> list[CommandLine]:
    """The exact commands that run a configuration: here, on several devices, on several hosts, on a cluster."""
    config = str(config_path)
    module = ("-m", "kvviz", "distill", config)
    per_node = ("--nproc-per-node", str(processes))
    meeting = (
        *("--nnodes", str(nodes), *per_node),
        *("--rdzv-backend", "c10d", "--rdzv-id", "kvviz", "--rdzv-endpoint", "HOST:29500"),
    )
    slurm = (
        *("--cluster", "slurm", "--nodes", str(nodes), "--tasks-per-node", str(processes)),
        *("--gpus", str(processes), "--partition", "PARTITION", "--time", "01:00:00"),
    )
    return [
        CommandLine("One process", _spelled("kvviz", "distill", config)),
        CommandLine(f"{processes} processes on this host", _spelled("torchrun", *per_node, *module)),
        CommandLine(
            f"{nodes} hosts, the same on each; HOST is one of them, and the folder of runs is shared",
            _spelled("torchrun", *meeting, *module),
        ),
        CommandLine(
            "A Slurm cluster (pip install 'kvviz[cluster]')", _spelled("kvviz", "distill", config, *slurm)
        ),
    ]


def _spelled(*words: str) -> str:
    return shlex.join(words)


def start_process(run: Run, command: Sequence[str], device: str = "") -> None:
    """Start a process for a folder whose lock the caller holds: it finds its own pid in the status once it gets the lock.

    Raises:
        RunError: the system starts none; the status is then failed. RunGone: the folder is not there.
    """
    with gone_if_missing(run.folder):
        log = run.log_path.open("ab")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            run.put_status("failed", message=f"Its process cannot be started: {error}", process=None)
            raise RunError(
                f"Cannot start {run.name}.", f"The system starts no process: {error}.", "Try again later."
            ) from error
    # Waits for its end: a process that nobody waits for stays in the system's table as a zombie.
    threading.Thread(target=child.wait, daemon=True, name=f"wait for {run.name}").start()
    try:
        mark = ProcessMark.of(child.pid)
    except psutil.NoSuchProcess:
        last = run.log_tail(5)
        run.put_status("failed", message=f"Its process ended at once.\n{last}".rstrip(), process=None)
        return
    run.put_status("queued", process=mark, device=device)


def _end(run: Run, state: RunState, grace: float) -> RunState:
    """End a run's processes without asking."""
    mark = state.process
    process = mark.find() if mark else None
    if process is not None:
        try:
            _kill(_tree(process))
        except psutil.AccessDenied as error:
            raise RunError(
                f"Cannot stop {run.name}.",
                f"Its process {process.pid} belongs to another user.",
                "Ask them, or stop it as them.",
            ) from error
    with locked(run.folder):
        after = read_state(run.folder)
        if after.status == "lost":
            last = run.checkpoints()
            since = f"steps after checkpoint {last[-1]} are lost" if last else "it has no checkpoint"
            message = f"Ended firmly: it had not stopped {grace:g} s after it was asked; {since}."
            run.put_status("stopped", message=message, process=mark)
    return run.state()


def _tree(process: psutil.Process) -> list[psutil.Process]:
    """A run's processes, the one that starts others first: torchrun's agent, its ranks, their helpers."""
    root = process
    parent = process.parent()
    if parent is not None and _is_agent(parent):
        root = parent
    return [one for one in (root, *root.children(recursive=True)) if one.pid != os.getpid()]


def _is_agent(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any(Path(word).name == AGENTS[0] or word in AGENTS for word in words)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # It ended by itself meanwhile.
    psutil.wait_procs(processes, timeout=KILL_SECONDS)


__all__ = [
    "CommandLine",
    "RunBusy",
    "RunError",
    "RunGone",
    "command_lines",
    "delete",
    "launch",
    "resume",
    "start_process",
    "stop",
]
