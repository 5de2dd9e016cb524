"""A matrix's queue in real processes whose work only counts: made, failed in part, stopped, resumed, started twice."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.arms import MatrixConfig
from kvviz.distill.config import DistillConfig
from kvviz.distill.matrix import Matrix, list_matrices
from kvviz.distill.queue import launch_matrix, resume_matrix, stop_matrix
from kvviz.distill.run import Run, RunBusy, RunError, RunGone
from kvviz.distill.status import read_state
from tests.distill.conftest import HOME, PATIENCE, until
from tests.distill.fake_matrix import PROGRAM


@pytest.fixture
def matrix(root, monkeypatch):
    """matrix(pace=…, fails=…, arms=…, seeds=…, steps=…): a matrix whose queue and runs do the fake work."""
    monkeypatch.setattr(launch, "PROGRAM", PROGRAM)
    made = []

    def create(*, pace=0.0, fails="none of them", arms=("flat", "none"), seeds=(0,), steps=5) -> Matrix:
        monkeypatch.setenv("FAKE_PACE", str(pace))
        monkeypatch.setenv("FAKE_FAILS", fails)
        config = MatrixConfig(arms=arms, seeds=seeds, base=DistillConfig(steps=steps))
        made.append(Matrix.create(config, root, f"m{len(made)}"))
        return made[-1]

    yield create
    for one in made:
        process = one.state().process if one.folder.is_dir() else None
        if process is not None and (alive := process.find()) is not None and alive.pid != os.getpid():
            alive.kill()


def statuses(matrix):
    return {cell.run.name: cell.state.status if cell.state else None for cell in matrix.cells()}


def ended(matrix):
    """Wait for the queue's end, whatever it is."""
    until(lambda: not matrix.state().alive, 2 * PATIENCE)
    return matrix.state()


def alive(matrix):
    return [cell for cell in matrix.cells() if cell.state is not None and cell.state.alive]


def test_a_queue_makes_every_run_and_writes_what_it_found(matrix):
    made = matrix(seeds=(3, 4))
    launch_matrix(made)
    pid = made.state().pid
    assert os.getsid(pid) == pid != os.getsid(0)
    state = ended(made)
    assert (state.status, state.step, state.steps) == ("finished", 4, 4), made.process.log_tail()
    names = ["m0-flat-seed3", "m0-none-seed3", "m0-flat-seed4", "m0-none-seed4"]
    assert statuses(made) == dict.fromkeys(names, "finished")
    found = json.loads((made.folder / "ab.json").read_text())
    assert [row["seeds"] for row in found["rows"]] == [[3, 4], [3, 4]]
    assert found["rows"][0]["accuracy"]["value"] == pytest.approx((2 + 1) / 8)
    assert "| flat, trained along | 3, 4 |" in (made.folder / "ab.md").read_text()
    # Each run is one like any other, with the settings of its arm and the seed of its column.
    config = Run(made.folder.parent.parent / "m0-flat-seed4").config
    assert (config.seed, config.kv_projection_mode, config.steps) == (4, "flat", 5)


def test_a_failed_run_does_not_keep_the_others_and_is_made_anew_on_resume(matrix, monkeypatch):
    made = matrix(seeds=(0, 1), fails="flat-seed0")
    launch_matrix(made)
    assert ended(made).status == "finished"
    others = dict.fromkeys(["m0-none-seed0", "m0-flat-seed1", "m0-none-seed1"], "finished")
    assert statuses(made) == {"m0-flat-seed0": "failed"} | others
    report = (made.folder / "ab.md").read_text()
    assert "1 failed, 3 finished" in report
    kept = {cell.run.name: cell.state.updated for cell in made.cells()}
    monkeypatch.setenv("FAKE_FAILS", "none of them")
    resume_matrix(made)
    assert ended(made).status == "finished"
    assert statuses(made) == dict.fromkeys(kept, "finished")
    again = {cell.run.name for cell in made.cells() if cell.state.updated != kept[cell.run.name]}
    assert again == {"m0-flat-seed0"}, "what was finished is not made again"
    assert "4 finished" in (made.folder / "ab.md").read_text()


def test_a_run_that_cannot_be_started_does_not_keep_the_others(matrix):
    made = matrix()
    first, second = (cell.run for cell in made.cells())
    first.folder.mkdir(parents=True)
    (first.folder / "config.yaml").write_text("stepz: 3\n")
    launch_matrix(made)
    assert ended(made).status == "finished"
    assert statuses(made) == {first.name: "failed", second.name: "finished"}
    assert "stepz" in made.process.log_tail()


def test_a_run_somebody_else_finished_meanwhile_is_taken_as_it_is(matrix):
    made = matrix(arms=("flat", "none"), pace=0.02, steps=100)
    other = made.cells()[1].run
    other.prepare(made.config.config("none", 0))
    launch_matrix(made)
    until(lambda: alive(made))
    other.write_status("finished")
    assert ended(made).status == "finished"
    assert statuses(made) == {"m0-flat-seed0": "finished", "m0-none-seed0": "finished"}
    assert other.metrics() == []


def test_a_stop_ends_the_run_that_lives_and_begins_no_other(matrix, monkeypatch):
    made = matrix(pace=0.1, steps=1000, seeds=(0, 1))
    launch_matrix(made)
    (cell,) = until(lambda: [one for one in alive(made) if one.run.metrics()])
    stop_matrix(made)
    assert made.state().status in ("stopping", "stopped")
    assert ended(made).status == "stopped"
    assert "checkpoint" not in made.state().message, "a queue has none"
    assert cell.state.status == "stopped"
    assert cell.run.checkpoints()[-1] == cell.state.step
    rest = {name: status for name, status in statuses(made).items() if name != cell.run.name}
    assert set(rest.values()) == {None}
    step = cell.state.step
    monkeypatch.setenv("FAKE_PACE", "0")
    resume_matrix(made)
    assert ended(made).status == "finished"
    assert set(statuses(made).values()) == {"finished"}
    steps = [json.loads(line)["step"] for line in (cell.run.folder / "metrics.jsonl").open()]
    assert steps == list(range(1, 1001)), f"it went on after step {step}"


def test_a_killed_queue_is_lost_its_run_goes_on_and_is_taken_up_again(matrix):
    made = matrix(pace=0.05, steps=150)
    launch_matrix(made)
    (cell,) = until(lambda: alive(made))
    pid = until(lambda: cell.state.pid)
    psutil.Process(made.state().pid).kill()
    until(lambda: made.state().status == "lost")
    assert cell.state.alive
    resume_matrix(made)
    assert ended(made).status == "finished"
    assert set(statuses(made).values()) == {"finished"}
    assert cell.state.pid == pid, "its process was not started twice"


def test_a_stop_without_a_queue_reaches_the_runs(matrix):
    made = matrix(pace=0.1, steps=1000)
    launch_matrix(made)
    (cell,) = until(lambda: alive(made))
    # A queue that dies between a run's folder and its process leaves nobody to stop.
    until(lambda: cell.state.pid)
    psutil.Process(made.state().pid).kill()
    until(lambda: made.state().status == "lost")
    stop_matrix(made)
    # Between its end and the word about it, a run that had to be ended firmly is lost for a moment.
    until(lambda: cell.state.status == "stopped")


def test_a_second_start_is_refused_in_words(matrix):
    made = matrix(pace=0.1, steps=1000)
    launch_matrix(made)
    for start in (launch_matrix, resume_matrix):
        with pytest.raises(RunBusy, match="lives") as refused:
            start(made)
        assert made.name in refused.value.what
        assert refused.value.do == "Stop it first."
    stop_matrix(made)
    ended(made)


def test_two_that_start_at_once_start_one_process(matrix):
    made = matrix(pace=0.1, steps=1000)
    script = f"""
from kvviz.distill import launch
from kvviz.distill.matrix import Matrix
from kvviz.distill.queue import launch_matrix
from kvviz.distill.run import RunBusy
from pathlib import Path
launch.PROGRAM = {PROGRAM!r}
try:
    launch_matrix(Matrix(Path({str(made.folder)!r})))
    print("started")
except RunBusy:
    print("refused")
"""
    both = [
        subprocess.Popen([sys.executable, "-c", script], cwd=HOME, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(one.communicate(timeout=PATIENCE)[0].strip() for one in both) == ["refused", "started"]
    until(lambda: alive(made))
    stop_matrix(made)
    ended(made)


def test_what_is_finished_is_not_resumed(matrix):
    made = matrix(arms=("none",), steps=1)
    launch_matrix(made)
    ended(made)
    with pytest.raises(RunError, match="finished"):
        resume_matrix(made)


def test_a_matrix_that_is_gone_or_broken_is_named(matrix, root):
    made = matrix()
    (made.folder / "matrix.yaml").write_text("armz: [flat]\n")
    with pytest.raises(ConfigError, match="armz"):
        launch_matrix(made)
    with pytest.raises(ConfigError, match="no-such"):
        launch_matrix(Matrix(root / "matrices" / "no-such"))
    with pytest.raises(RunGone):
        stop_matrix(Matrix(root / "matrices" / "no-such"))
    assert read_state(made.folder).pid is None


def test_names_are_folders_of_their_own(root):
    Matrix.create(MatrixConfig(), root, "one")
    with pytest.raises(RunError, match="already"):
        Matrix.create(MatrixConfig(), root, "one")
    for name in ("../one", "a/b", ".hidden", "a b", "x" * 100):
        with pytest.raises(RunError, match="cannot be called"):
            Matrix.create(MatrixConfig(), root, name)


def test_the_newest_comes_first_whatever_was_written_last(root):
    for name in ("b", "a", "c"):
        Matrix.create(MatrixConfig(), root, name)
        time.sleep(0.01)
    (root / "matrices" / "b" / "ab.md").write_text("late")
    (root / "matrices" / "no-matrix").mkdir()
    assert [one.name for one in list_matrices(root)] == ["c", "a", "b"]
    assert list_matrices(root / "nowhere") == []
