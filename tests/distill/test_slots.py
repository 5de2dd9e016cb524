"""The queue: one run at a time on a device, in the order they were made, whoever started them."""

import os
import subprocess
import sys

import pytest

from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import list_runs
from kvviz.distill.slots import device_name, runs_at_once
from tests.distill.conftest import FAKE, HOME, PATIENCE, kill, status, until


def test_one_after_the_other_in_the_order_they_were_made(start):
    first, second, third = (start(pace=0.1, steps=2000) for _ in range(3))
    status(first, "running")
    until(lambda: first.name in second.state().message)
    until(lambda: "1 before it" in third.state().message)
    launch.stop(first)
    status(second, "running")
    assert third.state().status == "queued"
    kill(second)
    status(third, "running")


def test_a_run_stopped_in_the_queue_never_begins(start):
    first, second = start(pace=0.1, steps=2000), start(pace=0.1, steps=2000)
    status(first, "running")
    until(lambda: "Waits for cpu" in second.state().message)
    state = launch.stop(second)
    assert (state.status, state.message) == ("stopped", "Stopped before it began.")
    assert second.metrics() == []
    assert first.state().status == "running"


def test_a_run_killed_in_the_queue_holds_nobody_up(start):
    first, second, third = (start(pace=0.1, steps=2000) for _ in range(3))
    status(first, "running")
    until(lambda: "Waits for cpu" in second.state().message)
    kill(second)
    kill(first)
    status(third, "running")


def test_the_number_is_a_setting(start, monkeypatch):
    monkeypatch.setenv("KVVIZ_RUNS_AT_ONCE", "2")
    first, second, third = (start(pace=0.1, steps=2000) for _ in range(3))
    status(first, "running")
    status(second, "running")
    until(lambda: "use it" in third.state().message)


def test_two_servers_on_one_folder(root, monkeypatch):
    monkeypatch.setenv("FAKE_PACE", "0.05")
    script = f"""
from kvviz.distill import launch
from kvviz.distill.config import DistillConfig
launch.PROGRAM = {FAKE!r}
for _ in range(2):
    launch.launch(DistillConfig(steps=8))
"""
    servers = [subprocess.Popen([sys.executable, "-c", script], cwd=HOME) for _ in range(2)]
    assert [server.wait(PATIENCE) for server in servers] == [0, 0]
    runs = list_runs(root)
    assert len(runs) == 4

    def all_ended():
        states = [run.state() for run in runs]
        # Between the kernel's handing on of the lock and the next status there is never a second one at work.
        assert sum(state.status in ("starting", "running") for state in states) <= 1
        return all(state.status == "finished" for state in states)

    until(all_ended)
    spans = sorted((run.metrics()[0]["time"], run.metrics()[-1]["time"]) for run in runs)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_setting_that_makes_no_sense_is_named(monkeypatch, text):
    monkeypatch.setenv("KVVIZ_RUNS_AT_ONCE", text)
    with pytest.raises(ConfigError, match="KVVIZ_RUNS_AT_ONCE"):
        runs_at_once()


def test_a_device_is_named_without_torch(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert device_name(DistillConfig(device="cpu")) == "cpu"
    assert device_name(DistillConfig(device="cuda")) == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert device_name(DistillConfig(device="cuda")) == "cuda-2_3"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert device_name(DistillConfig(device="cuda")) == "cuda-2_3-job77"


def test_waiting_and_listing_need_no_torch(root):
    script = "import sys, kvviz.cli, kvviz.distill.slots, kvviz.distill.data; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ,
    )
    assert result.stdout.strip() == "False"
