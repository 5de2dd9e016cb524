"""What the warp does to each segment, against plain counting over W; and another length's segments and positions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.align.time import segment_warp
from kvviz.config import AlignmentConfig
from kvviz.diagnostics.time import segment_times, what_if

runs = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def ids(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[segment for segment, length in enumerate(lengths) for _ in range(length)]])


@settings(max_examples=50, deadline=None)
@given(runs, runs, st.sampled_from([0.0, 0.5, 1.0]))
def test_counts_agree_with_plain_loops_over_the_matrix(teacher, student, alpha):
    ids_t, ids_s = ids(teacher), ids(student)
    warp = segment_warp(ids_t, ids_s.shape[1], ids_s, alpha_map=dict.fromkeys(range(6), alpha))
    weight = warp.matrix()[0].double().tolist()
    for row in segment_times(warp, ids_t, ids_s, {0: "prompt"}):
        assert row.name == ("prompt" if row.id == 0 else f"segment {row.id}")
        mine = [t for t in range(ids_t.shape[1]) if int(ids_t[0, t]) == row.id]
        assert row.teacher == len(mine)
        assert row.student == sum(int(i) == row.id for i in ids_s[0])
        assert row.unread == sum(all(line[t] == 0 for line in weight) for t in mine)
        assert row.repeated == sum(sum(line[t] >= 0.5 - 1e-6 for line in weight) >= 2 for t in mine)
        assert math.isnan(row.stretch) if row.student == 0 else row.stretch == row.teacher / row.student


def test_padding_is_no_segment():
    ids_t, ids_s = torch.tensor([[0, 1, 1, -1]]), torch.tensor([[-1, 0, 1]])
    warp = segment_warp(ids_t, 3, ids_s)
    assert [(row.id, row.teacher, row.student) for row in segment_times(warp, ids_t, ids_s, {})] == [
        (0, 1, 1),
        (1, 2, 1),
    ]


@settings(max_examples=50, deadline=None)
@given(runs, st.integers(1, 60), st.sampled_from(["auto", "text", "linear", "area"]))
def test_another_length_reads_each_position_inside_the_segment_it_is_given(lengths, T_s, method):
    ids_t = ids(lengths)
    warp, ids_s = what_if(AlignmentConfig(time_method=method), ids_t, T_s)
    assert ids_s.shape == (1, T_s)
    for position, line in enumerate(warp.matrix()[0].tolist()):
        read = {int(ids_t[0, t]) for t, weight in enumerate(line) if weight > 0}
        assert read == {int(ids_s[0, position])}
    assert (ids_s.diff() >= 0).all()


def test_ratios_share_out_the_length_and_alpha_is_honoured():
    config = AlignmentConfig(ratio_map=((1, 3.0),), alpha_map=((0, 0.0),))
    warp, ids_s = what_if(config, ids([10, 10]), 20)
    assert ids_s[0].tolist() == [0] * 5 + [1] * 15
    assert set(warp.matrix()[0, :5].unique().tolist()) == {0.0, 1.0}


def test_ratios_of_zero_leave_nothing():
    with pytest.raises(ValueError, match="nothing is left"):
        what_if(AlignmentConfig(ratio_map=((0, 0.0),)), ids([4]), 2)
