"""A run's folder: names, status, metrics, checkpoints; and what a reader makes of damage."""

import errno
import json
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import yaml

from kvviz.config import ConfigError
from kvviz.distill import status as status_file
from kvviz.distill.config import DistillConfig
from kvviz.distill.process import ProcessMark
from kvviz.distill.run import Run, RunGone, list_runs, runs_root
from kvviz.distill.status import FULL, RESERVE, read_written, write_state
from tests.distill.conftest import until
from tests.distill.fake import checkpoint


@pytest.fixture
def run(root):
    return Run.create(DistillConfig(steps=7), root)


def lines(run):
    return (run.folder / "metrics.jsonl").read_text()


def test_a_name_says_when_what_and_which_seed(root):
    run = Run.create(DistillConfig(kv_projection_mode="flat", seed=3), root)
    day, second, rest = run.name.split("-", 2)
    assert (len(day), len(second), rest) == (8, 6, "flat-seed3")
    assert run.folder.parent == root == runs_root()


def test_runs_made_at_one_moment_have_names_of_their_own(root):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda seed: Run.create(DistillConfig(), root), range(16)))
    assert len({run.name for run in made}) == 16
    assert {run.name for run in list_runs(root)} == {run.name for run in made}
    assert all(run.config == DistillConfig() for run in made)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_a_new_run_is_queued_and_says_what_it_is(run):
    state = run.state()
    assert (state.status, state.step, state.steps, state.pid) == ("queued", 0, 7, None)
    assert run.differences() == {"steps": 7}
    assert run.metrics() == run.checkpoints() == run.snapshots() == []
    assert run.latest_checkpoint() is None
    assert run.log_tail() == ""


def test_a_status_keeps_what_is_not_said_anew(run):
    created = run.state().created
    run.write_status("running", step=3, steps=9, message="on its way", device="cpu")
    run.write_status("running", step=4)
    state = run.state()
    assert (state.step, state.steps, state.device, state.message) == (4, 9, "cpu", "")
    assert (state.pid, state.host, state.created) == (os.getpid(), socket.gethostname(), created)
    assert state.updated >= created


def test_stopping_is_found_out_by_whoever_reads(run):
    run.write_status("running", step=1)
    run.request_stop()
    assert run.stop_requested()
    assert run.state().status == "stopping"
    run.clear_stop()
    assert run.state().status == "running"
    run.request_stop()
    run.write_status("stopped")
    assert run.state().status == "stopped"


def put(run, **changes):
    write_state(run.folder, replace(read_written(run.folder), **changes))


def test_a_process_that_is_gone_makes_it_lost(run):
    run.write_status("running", step=4)
    put(run, pid=2**22 + 1)
    state = run.state()
    assert state.status == "lost"
    assert "after step 4" in state.message


def test_a_process_that_took_its_pid_does_not_count(run):
    run.write_status("running")
    put(run, pid_started=psutil.Process().create_time() - 3600)
    assert run.state().status == "lost"


def test_a_zombie_is_dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    mark = ProcessMark.of(child)
    until(lambda: psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert mark.find() is None
    os.waitpid(child, 0)


def test_a_run_nobody_starts_is_lost_after_a_minute(run):
    put(run, created=time.time() - 61)
    assert run.state().status == "lost"


def test_on_another_host_it_says_when_it_was_last_heard_of(run):
    run.write_status("running", message="step by step")
    put(run, host="elsewhere", pid=2**22 + 1)
    state = run.state()
    assert state.status == "running"
    assert state.elsewhere
    assert "step by step" in state.message
    assert "elsewhere" in state.message
    assert time.strftime("%Y-%m-%d") in state.message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"status": "odd"}', '{"status": "running", "step": "x"}']
)
def test_a_status_that_cannot_be_read_is_a_failed_run_and_the_others_go_on(root, run, text):
    other = Run.create(DistillConfig(), root)
    (run.folder / "status.json").write_text(text)
    state = run.state()
    assert state.status == "failed"
    assert "status.json" in state.message
    assert {one.name for one in list_runs(root)} == {run.name, other.name}
    assert other.state().status == "queued"


def test_a_configuration_that_cannot_be_read_is_a_failed_run(run):
    run.write_status("finished")
    (run.folder / "config.yaml").write_text("steps: many\n")
    assert run.state().status == "failed"
    assert "steps" in run.state().message
    (run.folder / "config.yaml").unlink()
    assert run.state().status == "failed"
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        _ = run.config


def test_the_newest_run_is_listed_first_and_other_folders_are_not_listed(root):
    made = []
    for age in (300, 100, 200):
        run = Run.create(DistillConfig(), root)
        put(run, created=time.time() - age)
        made.append(run)
    (root / "notes").mkdir()
    (root / "file").touch()
    assert list_runs(root) == [made[1], made[2], made[0]]
    assert list_runs(root / "nowhere") == []


def test_a_status_replaced_quickly_is_never_read_stale(run):
    for step in range(300):
        run.write_status("running", step=step)
        assert run.state().step == step
    old = time.time() - 100
    os.utime(run.folder / "status.json", (old, old))
    assert run.state().step == run.state().step == 299
    run.write_status("running", step=300)
    assert run.state().step == 300


def test_lines_of_a_step_are_merged_and_the_later_value_wins(run):
    run.append({"step": 5, "loss": 2.0, "learning_rate": 0.1})
    run.append({"step": 5, "eval_loss": 3.0})
    run.append({"step": 10, "loss": 1.5})
    run.append({"step": 5, "loss": 1.0})
    first, second = run.metrics()
    assert (first["loss"], first["eval_loss"], first["learning_rate"]) == (1.0, 3.0, 0.1)
    assert (second["step"], second["loss"]) == (10, 1.5)
    assert abs(first["time"] - time.time()) < 60


def test_a_line_once_written_stays(run):
    run.append({"step": 1, "loss": 1.0})
    before = lines(run)
    for step in (2, 1):
        run.append({"step": step, "loss": 2.0})
        assert lines(run).startswith(before)
        before = lines(run)
    assert len(lines(run).splitlines()) == 3


def test_numbers_of_numpy_and_such_that_are_not_finite(run):
    run.append({"step": 1, "loss": float("nan"), "k_loss": np.float32(0.5), "heads": [np.inf, 1]})
    row = json.loads(lines(run), parse_constant=pytest.fail)
    assert (row["loss"], row["k_loss"], row["heads"]) == (None, 0.5, [None, 1])


def test_a_line_needs_its_step(run):
    with pytest.raises(ValueError, match="step"):
        run.append({"loss": 1.0})


def test_a_broken_last_line_is_left_out_and_never_glued_to_the_next(run):
    run.append({"step": 1, "loss": 1.0})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in run.metrics()] == [1]
    run.append({"step": 3, "loss": 3.0})
    tail = run.tail()
    assert [row["step"] for row in tail.read()] == [1, 3]
    assert tail.broken == 1


def test_a_broken_line_is_skipped_and_counted(run):
    run.append({"step": 1})
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"loss": 1}\n\n')
    run.append({"step": 2})
    tail = run.tail()
    assert [row["step"] for row in tail.read()] == [1, 2]
    assert tail.broken == 3


def test_a_tail_reads_what_is_new_up_to_the_last_newline(run):
    tail = run.tail()
    assert tail.read() == []
    run.append({"step": 1, "loss": 1.0})
    assert tail.poll()
    assert not tail.poll()
    path = run.folder / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 2, "loss"')
    assert not tail.poll()
    with path.open("a") as file:
        file.write(": 2.0}\n")
    assert [row["loss"] for row in tail.read()] == [1.0, 2.0]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_tail_starts_over_where_the_file_shrinks_or_is_replaced(run, replaced):
    for step in (1, 2, 3):
        run.append({"step": step})
    tail = run.tail()
    tail.poll()
    path = run.folder / "metrics.jsonl"
    text = json.dumps({"step": 9}) + "\n"
    if replaced:
        other = path.with_suffix(".new")
        other.write_text(text * 9)
        other.replace(path)
    else:
        path.write_text(text)
    assert [row["step"] for row in tail.read()] == [9]
    path.unlink()
    assert tail.read() == []


def test_only_complete_checkpoints_count(run):
    for step in (10, 5, 100):
        checkpoint(run, step)
    run.checkpoint(200).mkdir()
    (run.folder / "checkpoints" / "checkpoint-x").mkdir()
    assert run.checkpoints() == [5, 10, 100]
    assert run.latest_checkpoint() == run.folder / "checkpoints" / "checkpoint-100"


def test_snapshots_are_found_by_their_step(run):
    for step in (20, 5):
        run.snapshot_path(step).parent.mkdir(exist_ok=True)
        run.snapshot_path(step).touch()
    (run.folder / "snapshots" / "step-000030.partial").touch()
    assert run.snapshots() == [5, 20]
    assert run.snapshot_path(5).name == "step-000005.safetensors"


def test_the_last_lines_of_a_long_log(run):
    run.log_path.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % number for number in range(100_000)))
    assert run.log_tail(2) == "line 99998\nline 99999"


def test_a_folder_deleted_while_it_is_watched_is_gone_and_says_so(run):
    run.append({"step": 1})
    tail = run.tail()
    tail.poll()
    shutil.rmtree(run.folder)
    looks = (
        run.state,
        run.metrics,
        tail.poll,
        run.checkpoints,
        run.snapshots,
        run.log_tail,
        run.request_stop,
        lambda: run.config,
        lambda: run.append({"step": 2}),
        lambda: run.write_status("running"),
    )
    for look in looks:
        with pytest.raises(RunGone, match="deleted or moved"):
            look()
    assert run.stop_requested()
    assert list_runs(run.folder.parent) == []


def test_a_full_disk_leaves_room_for_one_last_status(run, monkeypatch):
    real = status_file._replace

    def full(path, text):
        if (run.folder / RESERVE).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, text)

    monkeypatch.setattr(status_file, "_replace", full)
    run.write_status("failed", message="The disk is full.")
    assert run.state().message == "The disk is full."
    assert errno.ENOSPC in FULL


def test_a_status_that_does_not_fit_leaves_the_one_before(run, monkeypatch):
    run.write_status("running", step=3)

    def full(self, *arguments, **keys):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
        run.write_status("running", step=4)
    assert run.state().step == 3
    assert not list(run.folder.glob(".status.json.*"))


def test_a_run_stays_what_it_was_when_a_default_changes(tmp_path):
    config = DistillConfig.parse({"steps": 7, "trainer": {"fsdp": ["full_shard"], "bf16": True}})
    run = Run.create(config, tmp_path)
    assert run.config == config
    written = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert set(written) == set(DistillConfig.model_fields)
    assert set(written["loss_config"]) == set(type(config.loss_config).model_fields)
    assert written["trainer"] == {"bf16": True, "fsdp": ["full_shard"]}
