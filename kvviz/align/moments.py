"""Sufficient statistics of a linear map: XᵀX, XᵀY and friends, from one streaming pass.

Everything a fit or its held-out error needs is in these sums, so a layer map, a mode or a regulariser can
change without reading a text again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over `count` positions for each student layer, in float64.

    n = teacher heads × head dim, m = student heads × head dim. `x_sum [layer, n]`, `y_sum [layer, m]`,
    `xx [layer, n, n]`, `xy [layer, n, m]`, and the diagonal of YᵀY, `yy [layer, m]`.
    """

    count: Tensor
    x_sum: Tensor
    y_sum: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments:
        """Of paired positions: x `[layer, position, n]` (already layer-mapped), y `[layer, position, m]`."""
        x, y = x.double(), y.double()
        return cls(
            count=torch.tensor(float(x.shape[1]), dtype=torch.float64, device=x.device),
            x_sum=reduce(x, "layer position n -> layer n", "sum"),
            y_sum=reduce(y, "layer position m -> layer m", "sum"),
            xx=x.mT @ x,
            xy=x.mT @ y,
            yy=reduce(y.square(), "layer position m -> layer m", "sum"),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class CrossMoments:
    """The same sums before any layer map: every pair of teacher layers, so that any map can follow.

    `x_sum [teacher_layer, n]`, `y_sum [student_layer, m]`, `xx [teacher_layer, n, teacher_layer, n]`,
    `xy [teacher_layer, n, student_layer, m]`, `yy [student_layer, m]`.
    """

    count: Tensor
    x_sum: Tensor
    y_sum: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> CrossMoments:
        """Of paired positions: x `[teacher_layer, position, n]`, y `[student_layer, position, m]`."""
        flat_x = rearrange(x.double(), "layer position n -> position (layer n)")
        flat_y = rearrange(y.double(), "layer position m -> position (layer m)")
        teacher, student = {"teacher_layer": x.shape[0]}, {"student_layer": y.shape[0]}
        return cls(
            count=torch.tensor(float(x.shape[1]), dtype=torch.float64, device=x.device),
            x_sum=rearrange(flat_x.sum(0), "(teacher_layer n) -> teacher_layer n", **teacher),
            y_sum=rearrange(flat_y.sum(0), "(student_layer m) -> student_layer m", **student),
            xx=rearrange(
                flat_x.mT @ flat_x,
                "(teacher_layer n) (other_layer o) -> teacher_layer n other_layer o",
                **teacher,
                other_layer=x.shape[0],
            ),
            xy=rearrange(
                flat_x.mT @ flat_y,
                "(teacher_layer n) (student_layer m) -> teacher_layer n student_layer m",
                **teacher,
                **student,
            ),
            yy=rearrange(flat_y.square().sum(0), "(student_layer m) -> student_layer m", **student),
        )

    def __add__(self, other: CrossMoments) -> CrossMoments:
        return CrossMoments(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
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
