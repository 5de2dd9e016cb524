"""One head, token by token, in the measure its cell was coloured by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenMeasure:
    """How a measure of a head reads at a single token; never negative. `best` is its value at perfect agreement."""

    unit: str
    definition: str
    best: float


TOKEN_MEASURES: dict[str, TokenMeasure] = {
    "relative_error": TokenMeasure(
        "relative error", "‖projected − student‖² / ‖student‖² of this token; 0 is perfect", 0.0
    ),
    "cosine": TokenMeasure("1 − cosine", "1 − cos(projected, student) of this token; 0 is perfect", 0.0),
    "r2": TokenMeasure(
        "unexplained share",
        "‖projected − student‖² of this token over the mean squared distance of the head's tokens from their mean; "
        "its mean over tokens is 1 − R²",
        0.0,
    ),
    "norm_ratio": TokenMeasure("norm ratio", "‖projected‖ / ‖student‖ of this token; 1 is perfect", 1.0),
}


def by_token(projected: Tensor, student: Tensor, measure: str) -> Tensor:
    """`measure` (a key of TOKEN_MEASURES) at every token of one head, `[position]` float32.

    Args:
        projected, student: `[position, dim]` each.

    NaN where a token's own vector (`r2`: every distance from the head's mean) vanishes: there is nothing to
    compare with. Raises KeyError for a measure that does not exist.
    """
    projected, student = projected.float(), student.float()
    squared = (projected - student).square().sum(-1)
    own = student.square().sum(-1)
    spread = (student - student.mean(0)).square().sum(-1).mean()
    return {
        "relative_error": lambda: squared / _or_nan(own),
        # A cosine of rounded vectors may pass 1 by a hair.
        "cosine": lambda: (
            (1 - torch.cosine_similarity(projected, student, dim=-1))
            .clamp_min(0)
            .masked_fill(own == 0, torch.nan)
        ),
        "r2": lambda: squared / _or_nan(spread),
        "norm_ratio": lambda: (projected.square().sum(-1) / _or_nan(own)).sqrt(),
    }[measure]()


def _or_nan(denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, denominator, torch.nan)
