"""A run at a step: which student and projectors; and an inspection with them is the aligner that was saved."""

from __future__ import annotations

import shutil

import pytest
import torch

from kvviz.align.calibrate import states
from kvviz.config import AlignmentConfig, ConfigError
from kvviz.distill.checkpoint import read_projectors, stage, stages
from kvviz.distill.problems import RunError, RunGone
from kvviz.inspection import Inspection, Prompt, read
from kvviz.pair import load_model
from tests.labruns import aligner, made_run

PROMPT = Prompt("Tom has 12 apples. He buys 7 more.\n12 + 7 = 19\n#### 19")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(
        tmp_path_factory.mktemp("runs"),
        "trained",
        aligner="trained",
        init="uniform",
        layer_mapping_strategy="skip",
    )


def test_the_start_and_every_complete_checkpoint(run, tmp_path):
    assert stages(run) == [0, 10, 20]
    assert stage(run, 0).student == "bundled:student"
    assert stage(run, 20).student == str(run.checkpoint(20))
    cut = made_run(tmp_path, "cut", init="uniform")
    (cut.checkpoint(20) / "complete").unlink()
    cut.snapshot_path(0).unlink()
    assert stages(cut) == [10]


@pytest.mark.parametrize("step", [5, 7, 1000])
def test_a_step_without_a_checkpoint_names_those_there_are(run, step):
    with pytest.raises(RunError, match="0, 10, 20"):
        stage(run, step)


def test_a_run_that_is_gone(tmp_path):
    run = made_run(tmp_path, "gone", step=0, init="uniform")
    shutil.rmtree(run.folder)
    with pytest.raises(RunGone):
        stage(run, 0)


@pytest.mark.parametrize("step", [0, 10])
def test_projectors_read_back(run, step):
    found = read_projectors(stage(run, step))
    made = aligner(run.config, step)
    assert set(found) == {*made.projectors.state_dict(), "layer_matrix"}
    for name, value in made.projectors.state_dict().items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(found["layer_matrix"], made.layer_matrix)


def test_unreadable_projectors_are_explained(tmp_path):
    run = made_run(tmp_path, "cut", init="uniform")
    (run.checkpoint(10) / "projectors.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read"):
        read_projectors(stage(run, 10))


def test_an_inspection_with_a_runs_projectors_aligns_as_they_do(run):
    at = stage(run, 10)
    teacher, student = load_model("bundled:teacher"), load_model(at.student)
    weights = read_projectors(at)
    inspection = Inspection(read(teacher, student, PROMPT), run.config, projectors=weights)
    torch.testing.assert_close(inspection.layer_matrix, weights["layer_matrix"])
    alignment = inspection.alignment
    made = aligner(run.config, 10).eval()
    parts = {part: states(inspection.reading.trace_t, part, inspection.key_space).float() for part in "kvq"}
    with torch.no_grad():
        k, v, q = made(parts["k"], parts["v"], parts["q"], warp=inspection.warp)
    for part, wanted in (("k", k), ("v", v), ("q", q)):
        torch.testing.assert_close(alignment.aligned[part], wanted)
    assert inspection.fit_report is None


def test_projectors_of_another_configuration_are_refused(run):
    teacher, student = load_model("bundled:teacher"), load_model("bundled:student")
    reading = read(teacher, student, PROMPT)
    weights = read_projectors(stage(run, 10))
    flat = AlignmentConfig(kv_projection_mode="flat", init="random")
    with pytest.raises(ConfigError, match="projectors"):
        _ = Inspection(reading, flat, projectors=weights).alignment
    with pytest.raises(ConfigError, match="layer map"):
        _ = Inspection(reading, run.config, projectors=weights | {"layer_matrix": torch.eye(3)}).alignment
