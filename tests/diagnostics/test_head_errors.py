"""Errors of every head and token against loops in float64, and NaN where a figure has no meaning."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.diagnostics.errors import METRICS, head_errors, token_errors


def plain(projected, student, valid):
    """Each metric of one head from its tokens `[position, dim]`."""
    p = [row.double().numpy() for row, keep in zip(projected, valid, strict=True) if keep]
    s = [row.double().numpy() for row, keep in zip(student, valid, strict=True) if keep]
    mean = sum(s) / len(s)
    residual = sum(((a - b) ** 2).sum() for a, b in zip(p, s, strict=True))
    power = sum((b**2).sum() for b in s)
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(p, s, strict=True)]
    return {
        "relative_error": residual / power,
        "cosine": sum(cosines) / len(cosines),
        "r2": 1 - residual / sum(((b - mean) ** 2).sum() for b in s),
        "norm_ratio": math.sqrt(sum((a**2).sum() for a in p) / power),
    }


def pair(batch=2, seed=0):
    torch.manual_seed(seed)
    student = torch.randn(batch, 3, 2, 6, 5) + 1
    return student + 0.5 * torch.randn_like(student), student


VALID = torch.tensor([[True] * 6, [False, False, True, True, True, True]])


def test_every_head_against_loops():
    projected, student = pair()
    errors = head_errors(projected, student, VALID)
    for layer in range(3):
        for head in range(2):
            rows = (x[:, layer, head].flatten(0, 1) for x in (projected, student))
            for name, expected in plain(*rows, VALID.flatten()).items():
                assert float(getattr(errors, name)[layer, head]) == pytest.approx(expected, rel=1e-4), name
    assert set(METRICS) == set(errors.total) == set(errors.by_layer)


def test_totals_weigh_by_size_and_not_by_head():
    projected, student = pair()
    errors = head_errors(projected, student, VALID)
    keep = VALID[:, None, None, :, None]
    p, s = (x.double() * keep for x in (projected, student))
    mean = s.sum((0, 3), keepdim=True) / VALID.sum()
    for axes, total in (
        ((0, 1, 2, 3, 4), errors.total),
        ((0, 2, 3, 4), errors.by_layer),
    ):
        residual, power = (p - s).square().sum(axes), s.square().sum(axes)
        variance = ((s - mean) * keep).square().sum(axes)
        expected = {
            "relative_error": residual / power,
            "r2": 1 - residual / variance,
            "norm_ratio": (p.square().sum(axes) / power).sqrt(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(torch.as_tensor(total[name]).double(), value, rtol=1e-4, atol=1e-6)
    assert errors.total["cosine"] == pytest.approx(float(errors.cosine.mean()), rel=1e-5)
    torch.testing.assert_close(errors.by_layer["cosine"], errors.cosine.mean(1))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.floats(0.1, 10))
def test_what_padding_holds_is_never_seen(seed, scale):
    projected, student = pair(seed=seed)
    before = head_errors(projected, student, VALID)
    hidden = ~VALID[:, None, None, :, None]
    after = head_errors(
        projected.masked_fill(hidden, torch.nan), student.masked_fill(hidden, scale * 1e6), VALID
    )
    for name in METRICS:
        assert torch.equal(getattr(before, name), getattr(after, name))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99))
def test_equal_states_are_perfect(seed):
    _, student = pair(seed=seed)
    errors = head_errors(student, student, VALID)
    assert (errors.relative_error == 0).all()
    assert (errors.r2 == 1).all()
    torch.testing.assert_close(errors.cosine, torch.ones(3, 2))
    torch.testing.assert_close(errors.norm_ratio, torch.ones(3, 2))
    assert errors.total["relative_error"] == 0
    assert errors.total["r2"] == 1


def test_where_nothing_can_be_said_stands_nan():
    projected, student = pair(1)
    student[:, 0, 0] = 0.0
    student[:, 1, 1] = 0.1  # constant, and 0.1 has no exact float
    student[:, 2, 0, 3] = 0.0  # one token only
    errors = head_errors(projected, student, VALID[:1])
    for name in METRICS:
        assert getattr(errors, name)[0, 0].isnan(), name
    assert errors.r2[1, 1].isnan()
    assert errors.relative_error[1, 1].isfinite()
    assert errors.cosine[2, 0].isfinite()
    keep = torch.tensor([0, 1, 2, 4, 5])
    again = head_errors(projected[:, :, :, keep], student[:, :, :, keep], VALID[:1, :5])
    torch.testing.assert_close(errors.cosine[2, 0], again.cosine[2, 0])
    assert all(math.isfinite(value) for value in errors.total.values())
    projected[:, 2, 1] = 0.0
    assert head_errors(projected, student, VALID[:1]).cosine[2, 1] == 0


def test_one_token_has_an_error_but_no_variance():
    projected, student = pair(1)
    errors = head_errors(projected[:, :, :, :1], student[:, :, :, :1], VALID[:1, :1])
    assert errors.relative_error.isfinite().all()
    assert errors.r2.isnan().all()


def test_large_means_do_not_hide_the_variance():
    projected, student = pair(1)
    shifted = head_errors(projected + 1e4, student + 1e4, VALID[:1])
    torch.testing.assert_close(
        shifted.r2, head_errors(projected, student, VALID[:1]).r2, rtol=2e-2, atol=2e-2
    )


def test_tokens_of_one_head_against_loops():
    projected, student = (x[0, 1, 1].bfloat16() for x in pair())
    student[2] = 0.0
    errors = token_errors(projected, student)
    for position in range(6):
        a, b = (x[position].double().numpy() for x in (projected, student))
        if position == 2:
            assert errors.relative_error[position].isnan()
            assert errors.cosine[position].isnan()
            continue
        assert float(errors.relative_error[position]) == pytest.approx(
            ((a - b) ** 2).sum() / (b**2).sum(), rel=1e-5
        )
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert float(errors.cosine[position]) == pytest.approx(expected, rel=1e-5)


def test_bands_count_tokens_between_cosines():
    cosines = [-0.9, 0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, 1.0]
    student = torch.tensor([[1.0, 0.0]]).repeat(len(cosines) + 1, 1)
    projected = torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines] + [[1.0, 0.0]])
    student[-1] = 0.0  # no direction: in no band
    assert token_errors(projected, student).bands == {
        "below 0.5": 3,
        "0.5 to 0.8": 2,
        "0.8 to 0.95": 2,
        "0.95 and above": 2,
    }
