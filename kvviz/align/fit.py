"""Closed-form fits of the projectors, from moments alone.

With centred second moments C_xx = E[x xᵀ], C_xy = E[x yᵀ] of (layer-mapped, time-warped) teacher states x
and student states y, a linear map W minimises E‖y − W x‖² + λ s ‖W‖² (s the mean of C_xx's diagonal):

    flat         W = C_yx (C_xx + λ s I)⁻¹                                          (ridge regression)
    structured   W = A ⊗ P: alternating least squares; each half-step is exactly a ridge regression, started
                 from the top singular pair of C_xy rearranged to [(head pairs), (dim pairs)], which is the
                 nearest Kronecker product (Van Loan & Pitsianis, 1993, "Approximation with Kronecker products").

Centring first matters because keys have large means; the constant goes into the projector's offset. λ is
chosen on held-out texts and the figures reported come from a third set: training R² misleads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from kvviz.align.aligner import PARTS, MapProjectionAligner, Part, Projector
from kvviz.align.flat import FlatProjector
from kvviz.align.heads import HeadwiseMapProjector
from kvviz.align.moments import Moments, SplitMoments

RIDGES: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SWEEPS = 8
ROUNDING = 1e-12  # A variance under this share of the mean square is taken for zero.


@dataclass(frozen=True)
class PartScore:
    """How well one part (q, k or v) is mapped on texts nobody fitted to.

    r2: `[layer, head]`, 1 − residual / variance; NaN for a student head that does not vary.
    error: `[layer, head]`, residual / mean square; NaN for a student head that is zero throughout.
    total_r2, total_error: the same ratio after summing all layers and heads.
    """

    r2: Tensor
    error: Tensor
    total_r2: float
    total_error: float


@dataclass(frozen=True)
class FitReport:
    """Held-out scores of each part, and the regulariser chosen for each map (empty where nothing was fitted)."""

    scores: dict[Part, PartScore]
    ridge: dict[Part, list[float]]


def centred(moments: Moments, offset: bool) -> tuple[Tensor, Tensor]:
    """Second moments per position, C_xx `[layer, n, n]` and C_xy `[layer, n, m]`; about the mean if `offset`."""
    xx, xy = moments.xx / moments.count, moments.xy / moments.count
    if offset:
        x, y = moments.x_sum / moments.count, moments.y_sum / moments.count
        xx = xx - einsum(x, x, "layer n, layer o -> layer n o")
        xy = xy - einsum(x, y, "layer n, layer m -> layer n m")
    return xx, xy


def ridge(xx: Tensor, xy: Tensor, strength: float) -> Tensor:
    """Ridge regression `[layer, m, n]` from C_xx `[layer, n, n]` and C_xy `[layer, n, m]`."""
    return _solve(xx, xy, strength * xx.diagonal(dim1=-2, dim2=-1).mean(-1)).mT


def kronecker(
    xx: Tensor, xy: Tensor, strengths: Tensor, share: bool, sweeps: int = SWEEPS
) -> tuple[Tensor, Tensor]:
    """Alternating least squares for W = A ⊗ P, for several regularisers at once.

    Args:
        xx: `[layer, teacher_head, teacher_dim, teacher_head, teacher_dim]`.
        xy: `[layer, teacher_head, teacher_dim, student_head, student_dim]`.
        strengths: `[ridge]`, λ above.
        share: one P for all student heads, or one for each: then every head is a problem (a group) of its own.

    Returns:
        A `[ridge, layer, student_head, teacher_head]`, scaled so that the absolute row sums of a group average 1
        and its sum is not negative; P `[ridge, layer, group, student_dim, teacher_dim]` carries the rest.
    """
    groups = 1 if share else xy.shape[3]
    xy = rearrange(xy, "layer head dim (group out) out_dim -> layer group head dim out out_dim", group=groups)
    # Both half-steps multiply this one matrix, from either side.
    pairs = rearrange(xx, "layer head dim other_head other_dim -> layer (head other_head) (dim other_dim)")
    scale = einsum(xx, "layer head dim head dim -> layer") / (xx.shape[1] * xx.shape[2])
    penalty = rearrange(strengths[:, None] * scale, "ridge layer -> ridge layer 1")

    start = rearrange(xy, "layer group head dim out out_dim -> layer group (out head) (out_dim dim)")
    _, _, right = torch.linalg.svd(start, full_matrices=False)
    projection = repeat(
        right[:, :, 0],
        "layer group (out_dim dim) -> ridge layer group out_dim dim",
        dim=xx.shape[2],
        ridge=len(strengths),
    )
    for _ in range(sweeps):
        inner = rearrange(projection.mT @ projection, "... dim other_dim -> ... (dim other_dim)")
        gram = einsum(pairs, inner, "layer heads dims, ridge layer group dims -> ridge layer group heads")
        target = einsum(
            projection,
            xy,
            "ridge layer group out_dim dim, layer group head dim out out_dim -> ridge layer group head out",
        )
        mixer = _solve(_square(gram), target, penalty * projection.square().sum((-2, -1))).mT
        inner = rearrange(mixer.mT @ mixer, "... head other_head -> ... (head other_head)")
        gram = einsum(pairs, inner, "layer heads dims, ridge layer group heads -> ridge layer group dims")
        target = einsum(
            mixer,
            xy,
            "ridge layer group out head, layer group head dim out out_dim -> ridge layer group dim out_dim",
        )
        projection = _solve(_square(gram), target, penalty * mixer.square().sum((-2, -1))).mT
    size = mixer.abs().sum(-1).mean(-1) * torch.where(mixer.sum((-2, -1)) < 0, -1.0, 1.0)
    size = torch.where(size == 0, 1.0, size)[..., None, None]
    return rearrange(
        mixer / size, "ridge layer group out head -> ridge layer (group out) head"
    ), projection * size


def score(moments: Moments, weight: Tensor, offset: Tensor | None, heads: int) -> PartScore:
    """Score an affine map on moments, without reading a text.

    E(y − Wx − b)² = E y² − 2 W E xy + W E xx Wᵀ + b² − 2 b (E y − W E x), channel by channel.

    Args:
        weight: `[layer or 1, m, n]`. offset: `[layer or 1, m]` or None. heads: student heads in m.
    """
    weight = weight.to(moments.xx).expand(moments.yy.shape[0], -1, -1)
    bias = weight.new_zeros(weight.shape[:2]) if offset is None else offset.to(weight)
    xx, xy, yy = moments.xx / moments.count, moments.xy / moments.count, moments.yy / moments.count
    x, y = moments.x_sum / moments.count, moments.y_sum / moments.count
    predicted = einsum(weight, x, "layer m n, layer n -> layer m")
    residual = (
        yy
        - 2 * einsum(weight, xy, "layer m n, layer n m -> layer m")
        + ((weight @ xx) * weight).sum(-1)
        + bias.square()
        - 2 * bias * (y - predicted)
    )

    def by_head(channels: Tensor) -> Tensor:
        return rearrange(channels, "layer (head dim) -> layer head dim", head=heads).sum(-1)

    # Rounding can leave an exact fit a hair below zero.
    error, variance, power = by_head(residual).clamp_min(0), by_head(yy - y.square()), by_head(yy)
    # What is left of a constant after subtracting its mean's square is rounding, not variance.
    variance = variance.where(variance > ROUNDING * power, 0.0)
    return PartScore(
        r2=1 - _ratio(error, variance),
        error=_ratio(error, power),
        total_r2=float(1 - _ratio(error.sum(), variance.sum())),
        total_error=float(_ratio(error.sum(), power.sum())),
    )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.where(denominator > 0, 1.0), torch.nan)


def score_projector(projector: Projector, moments: Moments) -> PartScore:
    """Held-out score of any linear projector, whatever its mode and however it was made."""
    weight = rearrange(
        projector.dense().detach().double(),
        "... student_head student_dim teacher_head teacher_dim "
        "-> ... (student_head student_dim) (teacher_head teacher_dim)",
    )
    offset = getattr(projector, "offset", None)
    if offset is not None:
        offset = rearrange(offset.detach().double(), "... head dim -> ... (head dim)")
        offset = offset if offset.ndim == 2 else offset[None]
    return score(moments, weight if weight.ndim == 3 else weight[None], offset, projector.H_s)


@torch.no_grad()
def fit_aligner(
    aligner: MapProjectionAligner, moments: Mapping[Part, SplitMoments], ridges: tuple[float, ...] = RIDGES
) -> FitReport:
    """Fit every projector of an aligner in place, and score it on the report split.

    Identity has nothing to fit and is only scored.

    Raises:
        ValueError: for the elastic flat projector, which has no closed form.
    """
    chosen: dict[Part, list[float]] = {}
    for part in PARTS:
        projector = aligner.projector(part)
        if isinstance(projector, FlatProjector) and projector.projector.kind == "elastic":
            raise ValueError("the elastic projector has no closed form: choose the linear one, or train it")
        if isinstance(projector, (HeadwiseMapProjector, FlatProjector)):
            chosen[part] = _fit_projector(projector, moments[part], aligner.share_layers, ridges)
    scores = {part: score_projector(aligner.projector(part), moments[part].report) for part in PARTS}
    return FitReport(scores, chosen)


def _fit_projector(
    projector: HeadwiseMapProjector | FlatProjector,
    moments: SplitMoments,
    share: bool,
    ridges: tuple[float, ...],
) -> list[float]:
    """Fit for each regulariser, keep for each map the one with the least error on the select split."""
    fit, select = moments.fit, moments.select
    xx, xy = centred(fit, projector.offset is not None)
    if share:
        # Every layer about its own mean, then one map for all: the offset keeps its layer axis.
        xx, xy = xx.mean(0, keepdim=True), xy.mean(0, keepdim=True)
    found, weight = _solve_projector(projector, xx, xy, torch.tensor(ridges).to(xx))
    if projector.offset is not None:
        by_layer = weight.expand(-1, len(fit.x_sum), -1, -1)
        explained = einsum(by_layer, fit.x_sum, "ridge layer m n, layer n -> ridge layer m")
        found["offset"] = (fit.y_sum - explained) / fit.count
    offsets = found.get("offset", [None] * len(ridges))
    # Heads that do not vary on the select split have nothing to choose by.
    r2 = torch.stack(
        [score(select, w, b, projector.H_s).r2.nanmean(1) for w, b in zip(weight, offsets, strict=True)]
    ).nan_to_num()
    best = r2.mean(1, keepdim=True).argmax(0) if share else r2.argmax(0)
    owner = projector.projector if isinstance(projector, FlatProjector) else projector
    for name, parameter in owner.named_parameters():
        choice = best.expand(found[name].shape[1])
        chosen = torch.stack([found[name][index, layer] for layer, index in enumerate(choice)])
        parameter.copy_(chosen.reshape(parameter.shape))
    return [ridges[int(index)] for index in best]


def _solve_projector(
    projector: HeadwiseMapProjector | FlatProjector, xx: Tensor, xy: Tensor, strengths: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters by name, each with leading axes `[ridge, layer]`, and the dense weight `[ridge, layer, m, n]`."""
    if isinstance(projector, FlatProjector):
        weight = torch.stack([ridge(xx, xy, float(strength)) for strength in strengths])
        return {"weight": weight}, weight
    teacher = {"head": projector.H_t}
    xx = rearrange(
        xx,
        "layer (head dim) (other_head other_dim) -> layer head dim other_head other_dim",
        **teacher,
        other_head=projector.H_t,
    )
    xy = rearrange(
        xy, "layer (head dim) (out out_dim) -> layer head dim out out_dim", **teacher, out=projector.H_s
    )
    mixer, projection = kronecker(xx, xy, strengths, projector.share_dim_proj)
    weight = einsum(
        mixer,
        projection.expand(-1, -1, projector.H_s, -1, -1),
        "ridge layer out head, ridge layer out out_dim dim -> ridge layer out out_dim head dim",
    )
    weight = rearrange(weight, "ridge layer out out_dim head dim -> ridge layer (out out_dim) (head dim)")
    return {"head_mixer": mixer, "dim_proj": projection}, weight


def _square(pairs: Tensor) -> Tensor:
    """`[…, n·n]` → `[…, n, n]`."""
    return pairs.unflatten(-1, (math.isqrt(pairs.shape[-1]),) * 2)


def _solve(gram: Tensor, target: Tensor, penalty: Tensor) -> Tensor:
    """(gram + penalty · I)⁻¹ target for a positive penalty; dead channels (zero rows of gram) come out zero."""
    floor = torch.finfo(gram.dtype).tiny
    return torch.linalg.solve(
        gram + torch.diag_embed(penalty.clamp_min(floor)[..., None].expand(gram.shape[:-1])), target
    )
