"""What a head mixer does: whom each student head reads, how many teacher heads that is, who is never read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvviz.align.aligner import Projector
from kvviz.align.flat import FlatProjector
from kvviz.align.heads import HeadwiseMapProjector
from kvviz.align.mixed import at_layer, head_weights, normalised

# A teacher head counts as dead where every student head gives it less than this share of what it gives its
# favourite: so no head of an even mixer is dead, however many it reads.
DEAD_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class Mixer:
    """One part's mixer at one student layer.

    weights: `[H_s, H_t]`, signed for structured and identity; for flat, each block's Frobenius norm.
    row_sums: `[H_s]`. effective: `[H_s]`, exp of the entropy of |weights| normalised: how many teacher heads a
    student head reads. dead_teacher, dead_student: heads that nobody reads, and that read nobody.
    singular_values: name → descending values of the dim projection (one for each student head where it has its own).
    """

    weights: Tensor
    row_sums: Tensor
    effective: Tensor
    dead_teacher: list[int]
    dead_student: list[int]
    singular_values: dict[str, Tensor]


def describe_mixer(projector: Projector, layer: int) -> Mixer:
    """Everything the Head mixers page shows of one part at one student layer.

    Raises:
        ValueError: for an elastic flat projector, which is not linear.
    """
    weights = head_weights(projector, layer)
    share = normalised(weights)
    favourite = share / share.amax(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return Mixer(
        weights=weights,
        row_sums=weights.sum(-1),
        effective=torch.where(share.sum(-1) > 0, entropy.exp(), 0.0),
        dead_teacher=(favourite.amax(0) < DEAD_SHARE).nonzero().flatten().tolist(),
        dead_student=(share.sum(-1) == 0).nonzero().flatten().tolist(),
        singular_values=_singular_values(projector, layer),
    )


def _singular_values(projector: Projector, layer: int) -> dict[str, Tensor]:
    if isinstance(projector, FlatProjector):
        weight = projector.projector.weight.detach()
        return {"whole map": torch.linalg.svdvals(at_layer(weight, layer, 2))}
    if not isinstance(projector, HeadwiseMapProjector):
        return {"all heads": torch.ones(min(projector.D_s, projector.D_t))}
    if projector.share_dim_proj:
        return {"all heads": torch.linalg.svdvals(at_layer(projector.dim_proj.detach(), layer, 2))}
    matrices = at_layer(projector.dim_proj.detach(), layer, 3)
    return {f"head {head}": torch.linalg.svdvals(matrix) for head, matrix in enumerate(matrices)}
