"""Runs of the fake work, in real processes that are gone when the test is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kvviz.distill import launch
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import Run, list_runs

FAKE = (sys.executable, "-m", "tests.distill.fake")
HOME = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds, on a machine that does other things as well


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of runs; whatever process is still alive in it at the end is killed."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("KVVIZ_RUNS", str(folder))
    monkeypatch.delenv("KVVIZ_RUNS_AT_ONCE", raising=False)
    monkeypatch.chdir(HOME)
    monkeypatch.setattr(launch, "PROGRAM", FAKE)
    yield folder
    for run in list_runs(folder):
        process = run.state().process
        if process is not None and (alive := process.find()) is not None and alive.pid != os.getpid():
            alive.kill()


@pytest.fixture
def start(root, monkeypatch):
    """start(kind, pace=…, steps=…): launch a run of the fake work, as a page does."""

    def launched(kind="count", *, pace=0.02, steps=10, **keys) -> Run:
        monkeypatch.setenv("FAKE", kind)
        monkeypatch.setenv("FAKE_PACE", str(pace))
        return launch.launch(DistillConfig(steps=steps, **keys), root)

    return launched


@pytest.fixture
def kvviz(root):
    """kvviz(*arguments, **environment): the command with the fake work, to its end."""

    def command(*arguments, **environment) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*FAKE, *map(str, arguments)],
            env={**os.environ, **environment},
            cwd=HOME,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return command


def until(condition, patience=PATIENCE):
    """Wait for a condition that becomes true; returns what it became."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return value


def status(run, *wanted, patience=PATIENCE):
    """Wait until a run has one of these statuses; returns its state."""
    end = time.monotonic() + patience
    while (state := run.state()).status not in wanted:
        assert time.monotonic() < end, f"{state}\n{run.log_tail()}"
        assert state.alive, f"{state}\n{run.log_tail()}"
        time.sleep(0.02)
    return state


def kill(run):
    """kill -9 the run's process, and wait until it is gone."""
    process = psutil.Process(run.state().pid)
    process.kill()
    psutil.wait_procs([process], timeout=PATIENCE)
