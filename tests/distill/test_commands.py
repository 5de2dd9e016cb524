"""`kvviz distill`, `runs`, `resume` and `stop`: what they do, and what they refuse in words."""

import json
import os
import subprocess

import psutil
import pytest

import kvviz as package
from kvviz import cli
from kvviz.commands.cluster import minutes
from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.config import DistillConfig
from kvviz.distill.run import Run, list_runs
from tests.distill.conftest import FAKE, HOME, PATIENCE, kill, status, until


def test_a_run_from_the_command_line(kvviz, root, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 4\nseed: 1\n")
    result = kvviz("distill", path, "--set", "seed=2", "--set", "loss_config.alpha_k=0")
    assert result.returncode == 0, result.stderr
    (run,) = list_runs(root)
    assert str(run.folder) in result.stderr
    assert run.differences() == {"steps": 4, "seed": 2, "loss_config": {"alpha_k": 0.0}}
    assert run.state().status == "finished"


def test_without_a_configuration_all_is_at_its_default(kvviz, root):
    assert kvviz("distill", "--set", "steps=1").returncode == 0
    (run,) = list_runs(root)
    assert run.differences() == {"steps": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "stepz=3"], ["stepz", "unknown key"]),
        (["--set", "steps=many"], ["steps", "'many'"]),
        (["--set", "loss_config.alpha_q=1"], ["loss_config.alpha_q"]),
        (["--set", "steps"], ["--set steps", "key=value"]),
        (["/no/such.yaml"], ["/no/such.yaml"]),
        (["--set", "data=/no/such.jsonl"], ["/no/such.jsonl", "why:", "do:"]),
        (["--cluster", "local", "--time", "soon"], ["--time", "'soon'"]),
        (["--cluster", "local", "--nodes", "2"], ["--cluster", "nodes"]),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_before_anything_starts(root, arguments, words, capsys):
    assert cli.main(["distill", *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert all(run.state().status == "failed" for run in list_runs(root))


def test_a_failed_run_has_its_exit_status(kvviz):
    result = kvviz("distill", FAKE="broken")
    assert result.returncode == 1
    assert "the fake broke" in result.stderr


def test_output_goes_to_the_terminal_and_to_the_log(kvviz, root):
    result = kvviz("distill", FAKE="broken")
    (run,) = list_runs(root)
    assert "ZeroDivisionError" in result.stderr
    assert "ZeroDivisionError" in run.log_tail()


def test_a_folder_of_ones_own(kvviz, tmp_path):
    folder = tmp_path / "mine"
    assert kvviz("distill", "--set", "steps=2", "--run-dir", folder).returncode == 0
    assert Run(folder).state().status == "finished"


def test_a_folder_that_holds_just_its_configuration(kvviz, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("steps: 2\n")
    assert kvviz("distill", folder / "config.yaml", "--run-dir", folder).returncode == 0
    assert Run(folder).state().status == "finished"


def test_a_folder_that_holds_more_is_refused(kvviz, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    result = kvviz("distill", "--run-dir", folder)
    assert result.returncode == 2
    assert "thesis.tex" in result.stderr
    assert os.listdir(folder) == ["thesis.tex"]

    (folder / "thesis.tex").unlink()
    (folder / "config.yaml").write_text("steps: 2\n")
    result = kvviz("distill", "--set", "steps=3", "--run-dir", folder)
    assert result.returncode == 2
    assert "another configuration" in result.stderr
    assert (folder / "config.yaml").read_text() == "steps: 2\n"

    file = tmp_path / "file"
    file.touch()
    assert "is a file" in kvviz("distill", "--run-dir", file).stderr


def test_a_folder_that_is_a_run_is_refused_and_resume_is_named(kvviz, tmp_path):
    folder = tmp_path / "mine"
    assert kvviz("distill", "--set", "steps=2", "--run-dir", folder).returncode == 0
    written = (folder / "metrics.jsonl").read_text()
    result = kvviz("distill", "--set", "steps=2", "--run-dir", folder)
    assert result.returncode == 2
    assert f"kvviz resume {folder}" in result.stderr
    assert (folder / "metrics.jsonl").read_text() == written


def test_resume_goes_on_in_the_foreground(kvviz, start):
    run = start(pace=0.5, steps=100)
    until(lambda: run.checkpoints())
    refused = kvviz("resume", run.folder)
    assert refused.returncode == 2
    assert "lives" in refused.stderr
    kill(run)
    result = kvviz("resume", run.folder, FAKE_PACE="0")
    assert result.returncode == 0, result.stderr
    assert run.state().status == "finished"
    assert [row["step"] for row in run.metrics()] == list(range(1, 101))
    assert "finished" in kvviz("resume", run.folder).stderr


def test_stop_says_how_it_ended(start, capsys):
    run = start(pace=0.05, steps=2000)
    until(lambda: run.metrics())
    assert cli.main(["stop", str(run.folder)]) == 0
    assert "stopped" in capsys.readouterr().out
    assert cli.main(["stop", str(run.folder / "nowhere")]) == 2
    assert "gone" in capsys.readouterr().err


def test_runs_are_listed_with_status_differences_and_last_metrics(start, root, capsys):
    good = start(steps=3)
    status(good, "finished")
    bad = start("broken", steps=2, seed=5)
    until(lambda: not bad.state().alive)
    assert cli.main(["runs", "--json", "--root", str(root)]) == 0
    newest, oldest = json.loads(capsys.readouterr().out)
    assert (oldest["name"], oldest["status"], oldest["step"]) == (good.name, "finished", 3)
    assert oldest["metrics"]["loss"] == pytest.approx(1 / 3)
    assert newest["differences"] == {"seed": 5, "steps": 2}
    assert cli.main(["runs"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in (good.name, "finished", "3/3", "seed=5", "failed", "the fake broke"))


def test_no_runs_says_how_to_start_one(root, capsys):
    assert cli.main(["runs"]) == 0
    assert "kvviz distill" in capsys.readouterr().out


def test_a_damaged_run_is_listed_among_the_others(root, capsys):
    good, bad = Run.create(DistillConfig(), root), Run.create(DistillConfig(), root)
    (bad.folder / "status.json").write_text("{")
    (bad.folder / "config.yaml").write_text("]")
    assert cli.main(["runs"]) == 0
    table = capsys.readouterr().out
    assert good.name in table
    assert "status.json cannot be read" in table


def test_under_torchrun_all_ranks_share_one_folder_and_rank_0_writes(root):
    torchrun = [FAKE[0], "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", FAKE[2]]
    result = subprocess.run(
        [*torchrun, "distill", "--set", "steps=3"],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    (run,) = list_runs(root)
    assert run.state().status == "finished"
    assert (run.folder / "seen-by-rank-1").exists()
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_rank_that_fails_is_named(root):
    torchrun = [FAKE[0], "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", FAKE[2]]
    environment = {**os.environ, "FAKE": "rank1"}
    result = subprocess.run(
        [*torchrun, "distill", "--set", "steps=3"],
        cwd=HOME,
        env=environment,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert result.returncode != 0
    (run,) = list_runs(root)
    until(lambda: not run.state().alive)
    assert run.state().status in ("failed", "lost")
    assert "Rank 1: ZeroDivisionError: rank one broke" in run.state().message


def test_a_firm_stop_ends_torchrun_with_all_its_ranks(root):
    torchrun = [FAKE[0], "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", FAKE[2]]
    environment = {**os.environ, "FAKE": "deaf", "FAKE_PACE": "0.1"}
    agent = subprocess.Popen([*torchrun, "distill", "--set", "steps=5000"], cwd=HOME, env=environment)
    (run,) = until(lambda: list_runs(root))
    status(run, "running")
    family = psutil.Process(agent.pid).children(recursive=True)
    assert len(family) >= 2
    assert launch.stop(run, grace=0.2).status == "stopped"
    agent.wait(PATIENCE)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive


def test_a_cluster_takes_the_same_run_and_it_really_trains(root, tmp_path):
    small = (
        "steps=1",
        "batch_size=2",
        "eval_every=1",
        "eval_examples=1",
        "calibration_examples=10",
        "max_new_tokens=2",
    )
    settings = [word for setting in small for word in ("--set", setting)]
    with (tmp_path / "out").open("w+") as out:  # no pipe: the job keeps it open for as long as it runs
        subprocess.run(
            [FAKE[0], "-m", "kvviz", "distill", *settings, "--cluster", "local", "--time", "5"],
            cwd=HOME,
            stdout=out,
            timeout=PATIENCE,
            check=True,
        )
        out.seek(0)
        folder, job = out.read().splitlines()
    run = Run(folder)
    assert job.startswith("local job ")
    until(lambda: not run.state().alive, patience=4 * PATIENCE)
    assert run.state().status == "finished", run.log_tail()
    assert run.checkpoints() == [1]


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("01:30:00", 90), ("00:00:01", 1)])
def test_times(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1:2", "00:00:00", "-5"])
def test_times_that_make_no_sense(text):
    with pytest.raises(ConfigError, match="--time"):
        minutes(text)


def test_every_public_name_is_there():
    assert set(package.__all__) - {"__version__"} == set(package._HOMES)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name if name != "__version__" else package.__version__
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
