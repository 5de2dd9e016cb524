"""One step of a timeline in colours that hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from kvviz.figures.timeline import attention_at, error_at, mixer_at
from tests.figures.drawn import trace

STEPS = [np.random.default_rng(step).random((4, 2)) / (step + 1) for step in range(3)]
WHOLE = np.concatenate([step.ravel() for step in STEPS])


@pytest.mark.parametrize("metric", ["relative_error", "cosine", "r2", "norm_ratio"])
def test_errors_of_all_steps_share_one_scale(theme, metric):
    drawn = [trace(error_at(step, WHOLE, metric, theme=theme, part="k"), "values") for step in STEPS]
    assert len({(one.zmin, one.zmax) for one in drawn}) == 1
    for one, step in zip(drawn, STEPS, strict=True):
        np.testing.assert_allclose(one.z, step)


def test_attention_spans_from_zero_to_the_largest_of_all_steps(theme):
    drawn = trace(attention_at(STEPS[2], WHOLE, theme=theme), "values")
    assert (drawn.zmin, drawn.zmax) == (0.0, WHOLE.max())


@pytest.mark.parametrize("signed", [True, False])
def test_mixers_of_all_steps_share_one_scale(theme, signed):
    weights = [step - 0.2 if signed else step for step in STEPS]
    whole = np.concatenate([step.ravel() for step in weights])
    drawn = [trace(mixer_at(step, whole, theme=theme, part="q", signed=signed), "values") for step in weights]
    ends = {(one.zmin, one.zmax) for one in drawn}
    assert len(ends) == 1
    low, high = ends.pop()
    assert low == (-high if signed else 0.0)
