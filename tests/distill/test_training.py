"""A run trained for real: killed and resumed, in two processes, stopped; each against one that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from kvviz.distill.config import DistillConfig
from kvviz.distill.run import Run

SMALL = {
    "steps": 8,
    "batch_size": 4,
    "eval_every": 3,
    "eval_examples": 6,
    "log_every": 1,
    "max_new_tokens": 20,
    "calibration_examples": 20,
    "device": "cpu",
    # Heavy, so that eight steps are enough to see the held-out objective fall.
    "loss_config": {"alpha_k": 1.0, "alpha_v": 1.0, "alpha_attn": 0.5},
}
LOSSES = ("loss", "ce_loss", "k_loss", "v_loss", "attn_loss")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    """One thread a process: sums in one order, so that two runs of the same steps agree to the last bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KVVIZ_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KVVIZ_RUNS_AT_ONCE", "4")


def prepared(folder, **changes) -> Run:
    run = Run(folder)
    run.prepare(DistillConfig.parse(SMALL | changes))
    return run


def start(run: Run) -> subprocess.Popen:
    command = [sys.executable, "-m", "kvviz", "resume", str(run.folder)]
    log = run.log_path.open("ab")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(run: Run) -> None:
    process = start(run)
    assert process.wait(timeout=300) == 0, run.log_tail(30)


def lines(run: Run) -> list[dict]:
    text = (run.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody disturbed."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "KVVIZ_RUNS_AT_ONCE": "4"}
    try:
        run = prepared(tmp_path_factory.mktemp("runs") / "undisturbed")
        finish(run)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return run


def test_a_run_leaves_what_the_pages_read(undisturbed):
    run = undisturbed
    assert run.state().status == "finished"
    assert run.checkpoints() == [3, 6, 8]
    assert run.snapshots() == list(range(9))
    by_step = {row["step"]: row for row in run.metrics()}
    assert list(by_step) == list(range(9))
    for step in range(1, 9):
        assert all(name in by_step[step] for name in (*LOSSES, "learning_rate", "time"))
    for step in (0, 3, 6, 8):
        row = by_step[step]
        assert {
            "eval_loss",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "k_spread",
            "v_spread",
            "k_r2",
        } <= set(row)
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert by_step[8]["eval_loss"] < by_step[0]["eval_loss"]
    snapshot = load_file(run.snapshot_path(8))
    assert snapshot["k.relative_error"].shape == (4, 2)
    assert snapshot["attention_kl"].shape == (4, 4)
    assert "projectors.k.head_mixer" in load_file(run.snapshot_path(0))
    # Weights only as safetensors; the newest checkpoint alone keeps the optimiser's state.
    assert not list(run.folder.rglob("*.bin"))
    assert [path.parent.name for path in run.folder.rglob("optimizer.pt")] == ["checkpoint-8"]


def test_the_total_is_the_weighted_sum_of_its_terms(undisturbed):
    loss = undisturbed.config.loss_config
    for row in undisturbed.metrics()[1:]:
        total = (
            loss.alpha_ce * row["ce_loss"]
            + loss.alpha_k * row["k_loss"]
            + loss.alpha_v * row["v_loss"]
            + loss.alpha_attn * row["attn_loss"]
        )
        assert row["loss"] == pytest.approx(total, rel=1e-4)


def test_frozen_projectors_and_the_teacher_stay_what_they_were(undisturbed):
    first, last = (load_file(undisturbed.checkpoint(step) / "projectors.safetensors") for step in (3, 8))
    for name, value in first.items():
        assert torch.equal(value, last[name])
    moved = [not torch.equal(a, weights(undisturbed, 8)[name]) for name, a in weights(undisturbed, 3).items()]
    assert all(moved)


def test_killed_at_random_and_resumed_it_ends_the_same(undisturbed, tmp_path):
    """kill -9 loses no written line, and the run that goes on ends on the same losses and the same weights."""
    run = prepared(tmp_path / "killed")
    draw = random.Random()
    kills = 0
    for _ in range(2):
        process = start(run)
        after = draw.randint(2, 7)
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            known = run.metrics()
            if known and known[-1]["step"] >= after:
                time.sleep(draw.random() * 0.3)
                break
            time.sleep(0.02)
        written = (run.folder / "metrics.jsonl").read_bytes()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert run.state().status == "lost"
        later = (run.folder / "metrics.jsonl").read_bytes()
        assert later.startswith(written)
    assert kills, "the run was over before it could be killed"
    before = lines(run)
    finish(run)
    assert lines(run)[: len(before)] == before
    assert run.state().status == "finished"
    expected = {row["step"]: row for row in undisturbed.metrics()}
    found = {row["step"]: row for row in run.metrics()}
    assert set(found) == set(expected)
    for step, row in expected.items():
        for name in (*LOSSES, "eval_loss", "k_spread", "accuracy", "learning_rate", "tokens_seen"):
            if name in row:
                assert found[step][name] == pytest.approx(row[name], rel=1e-5), (step, name)
    for name, value in weights(undisturbed, 8).items():
        torch.testing.assert_close(weights(run, 8)[name], value, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_cut_short_is_not_gone_on_from(undisturbed, tmp_path):
    run = Run(shutil.copytree(undisturbed.folder, tmp_path / "cut"))
    (run.checkpoint(8) / "complete").unlink()
    (run.checkpoint(8) / "model.safetensors").write_bytes(b"half")
    assert run.checkpoints() == [3, 6]
    assert run.latest_checkpoint() == run.checkpoint(6)


def test_a_stop_ends_on_a_checkpoint_and_resume_goes_on(undisturbed, tmp_path):
    run = prepared(tmp_path / "stopped")
    process = start(run)
    while not any(row["step"] >= 1 for row in run.metrics()):
        assert process.poll() is None, run.log_tail(30)
        time.sleep(0.02)
    run.request_stop()
    assert process.wait(timeout=200) == 0
    state = run.state()
    assert state.status == "stopped"
    assert run.checkpoints()[-1] == state.step < 8
    finish(run)
    assert run.metrics()[-1]["loss"] == pytest.approx(undisturbed.metrics()[-1]["loss"], rel=1e-5)


def test_two_processes_learn_as_one_with_twice_the_batch(tmp_path):
    """The same texts a step, in two halves: counts of tokens and positions are shared, so the losses are the same."""
    one, two = (
        prepared(tmp_path / name, batch_size=size, steps=3, schedule="constant", warmup_steps=0)
        for name, size in (("one", 8), ("two", 4))
    )
    finish(one)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29513",
    ]
    config = two.folder / "config.yaml"
    command += ["-m", "kvviz", "distill", str(config), "--run-dir", str(two.folder)]
    (two.folder / "status.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert two.state().status == "finished"
    for alone, together in zip(one.metrics(), two.metrics(), strict=True):
        assert alone["step"] == together["step"]
        if "tokens_seen" in alone:
            assert together["tokens_seen"] == alone["tokens_seen"]  # really two halves of the same texts
        for name in (*LOSSES, "eval_loss", "eval_ce_loss", "k_spread", "k_r2", "accuracy"):
            if name in alone:
                assert together[name] == pytest.approx(alone[name], rel=2e-3), (alone["step"], name)


def test_a_trained_aligner_moves_and_is_kept_at_every_log(tmp_path):
    run = prepared(
        tmp_path / "trained", aligner="trained", init="uniform", share_layers=True, offset=False, steps=3
    )
    finish(run)
    kept = [load_file(run.snapshot_path(step))["projectors.k.head_mixer"] for step in run.snapshots()]
    assert kept[0][0].tolist() == [0.5, 0.5, 0, 0]  # the uniform start
    assert not torch.equal(kept[0], kept[-1])
    assert torch.equal(kept[-1], load_file(run.checkpoint(3) / "projectors.safetensors")["k.head_mixer"])
