"""Sufficient statistics of a linear map: XᵀX, XᵀY and friends, from one streaming pass.

Everything a fit or its held-out error needs is in these sums, so a layer map, a mode or a regulariser can
change without reading a text again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor


@dataclass(frozen=True)
class _Sums:
    """What both kinds of moments hold; sums over disjoint texts add up."""

    count: Tensor
    x_sum: Tensor
    y_sum: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))

    def cpu(self) -> Self:
        """The same sums on the CPU, where fits are made."""
        return type(self)(*(getattr(self, entry.name).cpu() for entry in fields(self)))


@dataclass(frozen=True)
class Moments(_Sums):
    """Sums over `count` positions for each student layer, in float64.

    n = teacher heads × head dim, m = student heads × head dim. `x_sum [layer, n]`, `y_sum [layer, m]`,
    `xx [layer, n, n]`, `xy [layer, n, m]`, and the diagonal of YᵀY, `yy [layer, m]`.
    """

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments:
        """Of paired positions: x `[layer, position, n]` (already layer-mapped), y `[layer, position, m]`."""
        x, y = x.float(), y.float()
        x_mean, y_mean = x.double().mean(1), y.double().mean(1)
        xx, xy = _products(x, x, x_mean, x_mean), _products(x, y, x_mean, y_mean)
        return cls(
            count=torch.tensor(float(x.shape[1]), dtype=torch.float64, device=x.device),
            x_sum=x_mean * x.shape[1],
            y_sum=y_mean * y.shape[1],
            xx=xx,
            xy=xy,
            yy=reduce(y.double().square(), "layer position m -> layer m", "sum"),
        )


@dataclass(frozen=True)
class CrossMoments(_Sums):
    """The same sums before any layer map: every pair of teacher layers, so that any map can follow.

    `x_sum [teacher_layer, n]`, `y_sum [student_layer, m]`, `xx [teacher_layer, n, teacher_layer, n]`,
    `xy [teacher_layer, n, student_layer, m]`, `yy [student_layer, m]`.
    """

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> CrossMoments:
        """Of paired positions: x `[teacher_layer, position, n]`, y `[student_layer, position, m]`."""
        both = Moments.of(
            rearrange(x, "layer position n -> 1 position (layer n)"),
            rearrange(y, "layer position m -> 1 position (layer m)"),
        )
        teacher, student = {"teacher_layer": x.shape[0]}, {"student_layer": y.shape[0]}
        return cls(
            count=both.count,
            x_sum=rearrange(both.x_sum, "1 (teacher_layer n) -> teacher_layer n", **teacher),
            y_sum=rearrange(both.y_sum, "1 (student_layer m) -> student_layer m", **student),
            xx=rearrange(
                both.xx,
                "1 (teacher_layer n) (other_layer o) -> teacher_layer n other_layer o",
                **teacher,
                other_layer=x.shape[0],
            ),
            xy=rearrange(
                both.xy,
                "1 (teacher_layer n) (student_layer m) -> teacher_layer n student_layer m",
                **teacher,
                **student,
            ),
            yy=rearrange(both.yy, "1 (student_layer m) -> student_layer m", **student),
        )

    def under(self, layer_matrix: Tensor) -> Moments:
        """The moments of layer-mapped teacher states, `layer_matrix` `[student_layer, teacher_layer]`."""
        matrix = layer_matrix.to(self.xx)
        return Moments(
            count=self.count,
            x_sum=matrix @ self.x_sum,
            y_sum=self.y_sum,
            xx=einsum(
                matrix,
                einsum(matrix, self.xx, "student other, teacher n other o -> student teacher n o"),
                "student teacher, student teacher n o -> student n o",
            ),
            xy=einsum(matrix, self.xy, "student teacher, teacher n student m -> student n m"),
            yy=self.yy,
        )


@dataclass(frozen=True)
class SplitMoments:
    """Three disjoint sets of texts: to fit on, to choose the regulariser on, to report on."""

    fit: Moments
    select: Moments
    report: Moments


def _products(a: Tensor, b: Tensor, a_mean: Tensor, b_mean: Tensor) -> Tensor:
    """AᵀB of float32 states in float64 at the price of float32: the large part, the means, is added back exactly."""
    near_a, near_b = a_mean.float(), b_mean.float()
    centred_a, centred_b = a - near_a[:, None], b - near_b[:, None]
    # What rounding the means to float32 leaves behind.
    count, near_a, near_b = a.shape[1], near_a.double(), near_b.double()
    rest_a, rest_b = count * (a_mean - near_a), count * (b_mean - near_b)
    return (
        (centred_a.mT @ centred_b).double()
        + einsum(near_a, rest_b, "layer n, layer m -> layer n m")
        + einsum(rest_a, near_b, "layer n, layer m -> layer n m")
        + count * einsum(near_a, near_b, "layer n, layer m -> layer n m")
    )
