"""A run's timeline: what was written reads back by step; mixers are those of the projectors themselves."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from kvviz.align.mixed import head_weights
from kvviz.distill.problems import RunGone
from kvviz.distill.timeline import read_timeline
from tests.labruns import aligner, made_run


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs"), "frozen", init="uniform")


def test_maps_are_those_of_the_files_in_order_of_steps(frozen):
    timeline = read_timeline(frozen)
    assert timeline.steps == (0, 1, 5, 10, 15, 20)
    for index, step in enumerate(timeline.steps):
        written = load_file(frozen.snapshot_path(step))
        for name in ("k.relative_error", "v.norm_ratio", "attention_kl"):
            np.testing.assert_array_equal(timeline.map(name, index), written[name])
    assert timeline.map("k.unheard", 0) is None
    assert len(timeline.all_of("attention_kl")) == 6 * 16
    assert timeline.all_of("unheard").size == 0


@pytest.mark.parametrize(("step", "index"), [(-3, 0), (0, 0), (4, 1), (5, 2), (19, 4), (10**9, 5)])
def test_a_step_between_two_is_the_one_before(frozen, step, index):
    assert read_timeline(frozen).at(step) == index


def test_frozen_projectors_are_those_of_the_start_at_every_step(frozen):
    timeline = read_timeline(frozen)
    assert [timeline.mixer_step(index) for index in range(6)] == [0] * 6


MODES = [
    {"init": "uniform"},
    {"init": "random", "share_layers": True},
    {"init": "uniform", "share_dim_proj": False},
    {"kv_projection_mode": "flat", "init": "random"},
    {"kv_projection_mode": "flat", "init": "random", "share_layers": True},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_mixers_are_those_of_the_projectors(tmp_path, mode):
    run = made_run(tmp_path, "trained", aligner="trained", step=10, **mode)
    timeline = read_timeline(run)
    for step in timeline.steps:
        assert timeline.mixer_step(timeline.steps.index(step)) == step
        made = aligner(run.config, step)
        for part in ("k", "v", "q"):
            heads, teacher_heads = made.student.heads_of(part), made.teacher.heads_of(part)
            for layer in (0, 3):
                found = timeline.mixer(part, step, layer, heads, teacher_heads)
                wanted = head_weights(made.projector(part), layer).detach().numpy()
                np.testing.assert_allclose(found, wanted, rtol=1e-5)
            assert len(timeline.mixers(part, 0, heads, teacher_heads)) == len(timeline.steps)


@pytest.mark.parametrize(
    "mode",
    [
        {"kv_projection_mode": "identity"},
        {"kv_projection_mode": "flat", "flat_kind": "elastic", "init": "random"},
    ],
    ids=str,
)
def test_what_has_no_mixer_says_so(tmp_path, mode):
    timeline = read_timeline(made_run(tmp_path, "run", step=5, **mode))
    assert timeline.mixer_step(1) is None
    with pytest.raises(ValueError, match="no head mixer"):
        timeline.mixer("k", 0, 0, 2, 4)


def test_an_unreadable_snapshot_costs_no_other(tmp_path):
    run = made_run(tmp_path, "run", init="uniform")
    run.snapshot_path(5).write_bytes(b"nonsense")
    run.snapshot_path(10).write_bytes(b"")
    timeline = read_timeline(run)
    assert timeline.steps == (0, 1, 15, 20)
    assert timeline.unreadable == (5, 10)


def test_a_snapshot_written_again_is_read_again(tmp_path):
    run = made_run(tmp_path, "run", init="uniform")
    before = read_timeline(run).map("attention_kl", 2)
    shutil.copy(run.snapshot_path(20), run.snapshot_path(5))
    assert not np.array_equal(read_timeline(run).map("attention_kl", 2), before)


def test_a_run_without_snapshots_and_one_that_is_gone(tmp_path):
    run = made_run(tmp_path, "run", step=0, init="uniform")
    shutil.rmtree(run.folder / "snapshots")
    assert read_timeline(run).steps == ()
    shutil.rmtree(run.folder)
    with pytest.raises(RunGone):
        read_timeline(run)
