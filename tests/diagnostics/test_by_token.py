"""Every token measure against plain float64 loops, and what its mean is the same as."""

import math

import pytest
import torch

from kvviz.diagnostics.by_token import TOKEN_MEASURES, by_token
from kvviz.diagnostics.errors import METRICS, head_errors


def pair(tokens=7, dims=5):
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(tokens, dims, generator=generator) + 2
    return student + 0.3 * torch.randn(tokens, dims, generator=generator), student


def plain(measure, projected, student):
    """Two vectors as lists of floats, and the mean squared distance of all tokens from their mean."""
    rows_p, rows_s = projected.double().tolist(), student.double().tolist()
    means = [sum(column) / len(rows_s) for column in zip(*rows_s, strict=True)]
    spread = sum(math.dist(row, means) ** 2 for row in rows_s) / len(rows_s)
    for p, s in zip(rows_p, rows_s, strict=True):
        own, size, distance = math.hypot(*s), math.hypot(*p), math.dist(p, s)
        dot = sum(a * b for a, b in zip(p, s, strict=True))
        yield {
            "relative_error": distance**2 / own**2,
            "cosine": 1 - dot / (own * size),
            "r2": distance**2 / spread,
            "norm_ratio": size / own,
        }[measure]


def test_there_is_one_for_every_measure_of_a_head():
    assert set(TOKEN_MEASURES) == set(METRICS)


@pytest.mark.parametrize("measure", TOKEN_MEASURES)
def test_matches_a_plain_loop(measure):
    projected, student = pair()
    expected = torch.tensor(list(plain(measure, projected, student)))
    assert torch.allclose(by_token(projected, student, measure), expected.float(), atol=1e-5)


@pytest.mark.parametrize("measure", TOKEN_MEASURES)
def test_equal_vectors_give_the_best_value_at_every_token(measure):
    _, student = pair()
    best = torch.full((len(student),), TOKEN_MEASURES[measure].best)
    assert torch.allclose(by_token(student, student, measure), best, atol=1e-6)


def test_means_over_tokens_are_the_heads_own_figures():
    projected, student = pair()
    whole = head_errors(
        projected[None, None, None], student[None, None, None], torch.ones(1, len(student), dtype=torch.bool)
    )
    assert float(by_token(projected, student, "r2").mean()) == pytest.approx(1 - float(whole.r2), abs=1e-5)
    assert float(by_token(projected, student, "cosine").mean()) == pytest.approx(
        1 - float(whole.cosine), abs=1e-5
    )


@pytest.mark.parametrize("measure", ["relative_error", "cosine", "norm_ratio"])
def test_a_token_whose_own_vector_is_zero_has_no_value(measure):
    projected, student = pair()
    student[2] = 0
    found = by_token(projected, student, measure)
    assert found[2].isnan()
    assert found.isnan().sum() == 1


def test_an_unknown_measure_is_refused():
    with pytest.raises(KeyError):
        by_token(*pair(), "error")
