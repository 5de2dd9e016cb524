"""The estimate before a run, against the run's own figures."""

import json

import pytest

from kvviz.cli import main
from kvviz.distill.config import DistillConfig
from kvviz.distill.trial import trial


def test_a_trial_adds_up_what_a_run_will_do(capsys, tmp_path):
    settings = {
        "steps": 50,
        "batch_size": 2,
        "eval_every": 20,
        "eval_examples": 4,
        "calibration_examples": 20,
        "max_new_tokens": 10,
        "device": "cpu",
    }
    path = tmp_path / "run.yaml"
    path.write_text(DistillConfig.parse(settings).to_yaml())
    assert main(["distill", str(path), "--trial"]) == 0
    found = json.loads(capsys.readouterr().out)
    evaluations = 4  # at steps 0, 20, 40 and 50
    expected = found["seconds_ready"] + 50 * found["seconds_step"] + evaluations * found["seconds_evaluation"]
    assert found["seconds_total"] == pytest.approx(expected)
    assert min(found["seconds_ready"], found["seconds_step"], found["seconds_evaluation"]) > 0
    assert found["peak_bytes"] > 100 * 2**20
    assert found["parameters_trained"] == 430_944
    assert found["device"] == "cpu"
    assert not list(tmp_path.glob("runs"))


def test_a_trained_aligner_counts_among_what_is_trained():
    config = DistillConfig(
        steps=2,
        batch_size=2,
        eval_examples=2,
        max_new_tokens=4,
        device="cpu",
        aligner="trained",
        init="uniform",
        share_layers=True,
        offset=False,
    )
    found = trial(config)
    mixers, projections = 3 * 16 * 24, 2 * 4 + 2 * 4 + 4 * 8
    assert found["parameters_trained"] == 430_944 + mixers + projections
