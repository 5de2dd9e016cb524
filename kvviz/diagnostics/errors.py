"""How far every projected head is from the student's own: one number a head, then one a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

METRICS: dict[str, str] = {
    "relative_error": "‖projected − student‖² / ‖student‖² over the text's tokens; 0 is perfect",
    "cosine": "mean over tokens of cos(projected, student); 1 is perfect",
    "r2": "1 − residual / variance about the student's mean on this text; 1 is perfect, 0 is no better than the mean",
    "norm_ratio": "‖projected‖ / ‖student‖, root mean square over tokens; 1 is perfect",
}
BANDS = (0.5, 0.8, 0.95)


@dataclass(frozen=True, eq=False)
class HeadErrors:
    """Each of METRICS as `[layer, head]`, and the same over all heads and layers as one number."""

    relative_error: Tensor
    cosine: Tensor
    r2: Tensor
    norm_ratio: Tensor
    total: dict[str, float]
    by_layer: dict[str, Tensor]


def head_errors(projected: Tensor, student: Tensor, valid: Tensor) -> HeadErrors:
    """Compare `[batch, layer, head, position, dim]` with the student's own, on positions `valid` `[batch, position]`.

    A head whose states vanish or do not vary has no relative error, cosine or R²: its cells are NaN, not zero.
    """
    keep = valid.to(student.device)
    projected, student = (
        x.transpose(1, 3)[keep].float().transpose(0, 2) for x in (projected, student)
    )  # [layer, head, position, dim]
    residual = (projected - student).square().sum((2, 3))
    power = student.square().sum((2, 3))
    # About the first token before about the mean: a state that never changes then has exactly no variance.
    moved = student - student[:, :, :1]
    variance = (moved - moved.mean(2, keepdim=True)).square().sum((2, 3))
    size = projected.square().sum((2, 3))
    cosine = _cosine(projected, student).nanmean(2)
    return HeadErrors(
        relative_error=_ratio(residual, power),
        cosine=cosine,
        r2=1 - _ratio(residual, variance),
        norm_ratio=_ratio(size, power).sqrt(),
        total={
            "relative_error": float(_ratio(residual.sum(), power.sum())),
            "cosine": float(cosine.nanmean()),
            "r2": float(1 - _ratio(residual.sum(), variance.sum())),
            "norm_ratio": float(_ratio(size.sum(), power.sum()).sqrt()),
        },
        by_layer={
            "relative_error": _ratio(residual.sum(1), power.sum(1)),
            "cosine": cosine.nanmean(1),
            "r2": 1 - _ratio(residual.sum(1), variance.sum(1)),
            "norm_ratio": _ratio(size.sum(1), power.sum(1)).sqrt(),
        },
    )


@dataclass(frozen=True, eq=False)
class TokenErrors:
    """One head, token by token: relative_error `[position]` (squared, of that token's own norm), cosine `[position]`."""

    relative_error: Tensor
    cosine: Tensor
    bands: dict[str, int]


def token_errors(projected: Tensor, student: Tensor) -> TokenErrors:
    """Compare one head, `[position, dim]` each; `bands` counts tokens between the cosines 0.5, 0.8 and 0.95."""
    projected, student = projected.float(), student.float()
    cosine = _cosine(projected, student)
    edges = (-1.0, *BANDS)
    names = (f"below {BANDS[0]}", *(f"{low} to {high}" for low, high in zip(BANDS, BANDS[1:], strict=False)))
    names = (*names, f"{BANDS[-1]} and above")
    bands = torch.bucketize(
        cosine[~cosine.isnan()], torch.tensor(edges[1:], device=cosine.device), right=True
    )
    return TokenErrors(
        relative_error=_ratio((projected - student).square().sum(-1), student.square().sum(-1)),
        cosine=cosine,
        bands={name: int((bands == index).sum()) for index, name in enumerate(names)},
    )


def _cosine(projected: Tensor, student: Tensor) -> Tensor:
    """Over the last axis; NaN where the student is zero and has no direction, 0 where only the projection is."""
    cosine = torch.cosine_similarity(projected, student, dim=-1)
    return cosine.masked_fill((student == 0).all(-1), torch.nan)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), torch.nan)
