"""The profile reports what the engine computes, and its memory counter counts what a plain sum predicts."""

import gc

import pytest
import torch

from kvviz import AlignmentConfig, profile_alignment
from kvviz.memory import peak_memory
from kvviz.profile import as_table
from tests.families import family

TEXT = "Question: Tom has 3 apples.\nReasoning:\n3 + 4 = 7\n7 - 2 = 5\n#### 5"


@pytest.fixture(scope="module")
def report():
    return profile_alignment(family("llama"), family("qwen3"), TEXT, AlignmentConfig(init="uniform"))


def test_profile_names_every_stage_with_its_shape(report):
    teacher, student = family("llama").geometry, family("qwen3").geometry
    shapes = {stage["name"]: stage["shape"] for stage in report["stages"]}
    T_t, T_s = report["tokens"]["teacher"], report["tokens"]["student"]
    assert shapes["capture teacher"] == [1, teacher.layers, teacher.kv_heads, T_t, teacher.head_dim]
    assert shapes["layers q"] == [1, student.layers, teacher.heads, T_t, teacher.head_dim]
    assert shapes["time k"] == [1, student.layers, teacher.kv_heads, T_s, teacher.head_dim]
    assert shapes["heads and dims v"] == [1, student.layers, student.kv_heads, T_s, student.value_dim]
    assert all(stage["seconds"] > 0 for stage in report["stages"])


def test_profile_reports_parameters_checks_and_the_baseline(report):
    teacher, student = family("llama").geometry, family("qwen3").geometry
    expected = 0
    for part in ("q", "k", "v"):
        heads, dims = student.heads_of(part), student.dim_of(part)
        expected += student.layers * (
            heads * teacher.heads_of(part) + dims * teacher.dim_of(part) + heads * dims
        )
    assert report["parameters"] == expected
    assert report["finite"] is True
    assert report["agreement"] < 1e-4
    for name in ("k_cosine", "v_cosine", "attention_kl"):
        assert isinstance(report[name], float)
        assert report[name] != report["identity"][name]


def test_identity_profile_equals_its_own_baseline():
    report = profile_alignment(
        family("llama"), family("qwen3"), TEXT, AlignmentConfig(kv_projection_mode="identity")
    )
    assert report["parameters"] == 0
    for name, value in report["identity"].items():
        assert report[name] == value


def test_table_shows_every_stage_and_both_columns(report):
    table = as_table(report)
    for stage in report["stages"]:
        assert stage["name"] in table
    assert f"{report['k_cosine']:.4f}" in table
    assert f"{report['identity']['k_cosine']:.4f}" in table


def test_peak_memory_counts_what_is_alive_at_once():
    x = torch.randn(256, 256)
    size = x.nbytes
    with peak_memory() as peak:
        y = x @ x
        z = (y + 1).view(-1)  # a view allocates nothing
        del y
        gc.collect()
        w = z * 2
        del w
    # y and z together, then z and w together: never three.
    assert peak.bytes == 2 * size
