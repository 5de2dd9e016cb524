"""A run's life in real processes: launched, killed, resumed, stopped politely and firmly, failed, deleted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import Run, RunBusy, RunError, RunGone, list_runs
from kvviz.distill.supervise import claim
from tests.distill.conftest import FAKE, HOME, PATIENCE, kill, status, until


@pytest.fixture
def interruptible():
    """A shell's background job is started deaf to SIGINT, and so is whatever it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def steps(run):
    return [row["step"] for row in run.metrics()]


def ended(run):
    """Wait for the end, whatever it is."""
    until(lambda: not run.state().alive)
    return run.state()


def test_a_launched_run_goes_through_its_life(start):
    run = start(steps=6)
    assert run.state().status in ("queued", "starting", "running")
    state = status(run, "finished")
    assert (state.step, state.steps, state.message) == (6, 6, "")
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert run.latest_checkpoint() == run.checkpoint(5)


def test_it_runs_in_a_session_of_its_own(start):
    run = start(pace=0.1, steps=1000)
    state = status(run, "running")
    assert os.getsid(state.pid) == state.pid != os.getsid(0)


def test_killed_it_is_lost_and_goes_on_from_its_checkpoint_losing_no_metric(start, monkeypatch):
    run = start(pace=0.2, steps=40)
    until(lambda: len(run.metrics()) >= 7)
    kill(run)
    assert run.state().status == "lost"
    written = (run.folder / "metrics.jsonl").read_text()
    before = steps(run)
    checkpoint = run.checkpoints()[-1]
    monkeypatch.setenv("FAKE_PACE", "0")
    launch.resume(run)
    assert status(run, "finished").step == 40
    assert (run.folder / "metrics.jsonl").read_text().startswith(written)
    assert steps(run) == list(range(1, 41))
    again = [row["step"] for row in map(json.loads, (run.folder / "metrics.jsonl").open())]
    assert again == before + list(range(checkpoint + 1, 41))


def test_a_polite_stop_ends_with_a_checkpoint_and_resumes(start, monkeypatch):
    run = start(pace=0.1, steps=300)
    until(lambda: run.metrics())
    state = launch.stop(run)
    assert state.status == "stopped"
    assert run.checkpoints()[-1] == state.step == steps(run)[-1] < 300
    assert f"step {state.step}" in state.message
    assert launch.stop(run) == state
    monkeypatch.setenv("FAKE_PACE", "0")
    launch.resume(run)
    assert status(run, "finished").step == 300


def test_a_firm_stop_ends_what_heeds_nothing(start):
    run = start("deaf", pace=0.05, steps=2000)
    pid = status(run, "running").pid
    until(lambda: run.checkpoints())
    state = launch.stop(run, grace=0.2)
    assert state.status == "stopped"
    assert "firmly" in state.message
    assert "0.2 s" in state.message
    until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_a_second_one_ends_at_once(start, interruptible, number):
    polite = start(pace=0.05, steps=2000)
    os.kill(status(polite, "running").pid, number)
    assert ended(polite).status == "stopped"
    assert polite.checkpoints()

    deaf = start("deaf", pace=0.05, steps=2000)
    pid = status(deaf, "running").pid
    os.kill(pid, number)
    assert status(deaf, "stopping").status == "stopping"
    time.sleep(1.1)
    os.kill(pid, number)
    state = ended(deaf)
    assert state.status == "stopped"
    assert f"second {number.name}" in state.message


def test_an_error_is_told_in_status_and_log(start):
    run = start("broken")
    state = ended(run)
    assert state.status == "failed"
    assert state.message == "ZeroDivisionError: the fake broke"
    until(lambda: "Traceback" in run.log_tail())


def test_an_explained_error_says_what_why_and_what_to_do(start):
    assert ended(start("explained")).message == "What happened.\nWhy it did.\nWhat to do."


def test_a_full_disk_is_named_and_says_what_is_kept(start):
    state = ended(start("full"))
    assert state.status == "failed"
    assert "The disk is full." in state.message
    assert "no checkpoint yet" in state.message


def test_a_launched_run_whose_data_cannot_be_read_is_failed(start):
    state = ended(start(data="/no/such/file.jsonl"))
    assert state.status == "failed"
    assert "/no/such/file.jsonl" in state.message


def test_a_folder_deleted_under_a_run_ends_it_and_the_others_go_on(start, root, monkeypatch):
    monkeypatch.setenv("KVVIZ_RUNS_AT_ONCE", "2")
    gone, other = start(pace=0.1, steps=2000), start(pace=0.1, steps=2000)
    pid = status(gone, "running").pid
    status(other, "running")
    # Its process may write a file into the folder while that is emptied.
    until(lambda: shutil.rmtree(gone.folder, ignore_errors=True) or not gone.folder.exists())
    until(lambda: not psutil.pid_exists(pid))
    with pytest.raises(RunGone):
        gone.state()
    assert list_runs(root) == [other]
    assert other.state().status == "running"


def test_what_lives_is_neither_resumed_nor_deleted(start):
    run = start(pace=0.1, steps=2000)
    status(run, "running")
    with pytest.raises(RunBusy, match="lives"):
        launch.resume(run)
    with pytest.raises(RunBusy, match="lives"):
        launch.delete(run)
    with pytest.raises(RunBusy, match="lives"):
        claim(run)
    kill(run)
    launch.delete(run)
    assert not run.folder.exists()
    assert not [path for path in run.folder.parent.iterdir() if path.name != ".slots"]


def test_two_that_resume_at_once_start_one_process(start):
    run = start(pace=0.1, steps=2000)
    until(lambda: run.metrics())
    kill(run)
    script = f"""
from kvviz.distill import launch
from kvviz.distill.run import Run, RunBusy
launch.PROGRAM = {FAKE!r}
try:
    launch.resume(Run({str(run.folder)!r}))
    print("started")
except RunBusy:
    print("refused")
"""
    both = [
        subprocess.Popen([sys.executable, "-c", script], cwd=HOME, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(one.communicate(timeout=PATIENCE)[0].strip() for one in both) == ["refused", "started"]
    assert status(run, "running").pid


def test_a_finished_run_is_not_resumed(start):
    run = start(steps=1)
    status(run, "finished")
    with pytest.raises(RunError, match="finished"):
        launch.resume(run)


def test_a_run_with_an_unusable_configuration_is_not_resumed(start):
    run = start(steps=1)
    status(run, "finished")
    run.write_status("stopped")
    (run.folder / "config.yaml").write_text("stepz: 3\n")
    with pytest.raises(ConfigError, match="stepz"):
        launch.resume(run)


def test_a_program_that_cannot_start_is_a_failed_run(root, monkeypatch):
    monkeypatch.setattr(launch, "PROGRAM", ("/no/such/program",))
    with pytest.raises(RunError, match="no/such/program"):
        launch.launch(DistillConfig(), root)
    (run,) = list_runs(root)
    assert run.state().status == "failed"


def test_a_program_that_ends_at_once_is_a_lost_run_with_its_words_in_the_log(root, monkeypatch):
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-c", "raise SystemExit('no engine here')"))
    run = launch.launch(DistillConfig(), root)
    assert ended(run).status == "lost"
    assert "no engine here" in run.log_tail()


def test_no_zombie_is_left(start):
    run = start(steps=1)
    pid = run.state().pid
    status(run, "finished")
    until(lambda: not psutil.pid_exists(pid))


def test_the_commands_for_every_scale():
    lines = {one.title: one.command for one in launch.command_lines("my run.yaml", processes=4, nodes=3)}
    one, torchrun, nodes, slurm = lines.values()
    assert one == "kvviz distill 'my run.yaml'"
    assert torchrun == "torchrun --nproc-per-node 4 -m kvviz distill 'my run.yaml'"
    assert "--nnodes 3" in nodes
    assert "--rdzv-endpoint HOST:29500" in nodes
    assert "--cluster slurm --nodes 3 --tasks-per-node 4" in slurm


def test_a_run_made_here_is_one_object_whatever_its_spelling(root):
    run = Run.create(DistillConfig(), root)
    assert run == Run(str(run.folder)) == Run(root / "." / run.name)
