"""The mixed attention target: what the teacher really attended to, carried to the student's layers, heads and time.

Layers are averaged with the layer map's weights, heads with the query projector's normalised absolute weights; rows go
to student time by the warp W, columns by its mass-conserving transpose. What falls where the student may not look is
cut off, the rest renormalised, and the share that was lost is reported.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor

from kvviz.align.aligner import MapProjectionAligner, Projector
from kvviz.align.flat import FlatProjector
from kvviz.align.warp import Warp
from kvviz.trace import Trace


def head_weights(projector: Projector, layer: int) -> Tensor:
    """`[H_s, H_t]`: the mixer itself, or for a flat map the Frobenius norm of each (student, teacher) head block."""
    if isinstance(projector, FlatProjector):
        dense = at_layer(projector.dense().detach(), layer, 4)
        return torch.linalg.matrix_norm(
            rearrange(dense, "student_head student_dim head dim -> student_head head student_dim dim")
        )
    return at_layer(projector.head_mixer.detach(), layer, 2)


def normalised(weights: Tensor) -> Tensor:
    """|weights| with rows summing to 1; a row of zeros stays zero."""
    magnitude = weights.abs()
    total = magnitude.sum(-1, keepdim=True)
    return torch.where(total > 0, magnitude / torch.where(total > 0, total, 1.0), 0.0)


def at_layer(parameter: Tensor, layer: int, own_axes: int) -> Tensor:
    """A parameter's value at a layer: it has a leading layer axis only where layers do not share."""
    return parameter if parameter.ndim == own_axes else parameter[layer]


@torch.no_grad()
def mixed_attention(
    teacher: Trace, aligner: MapProjectionAligner, warp: Warp, allowed: Tensor, layer: int
) -> tuple[Tensor, Tensor]:
    """The target of one student layer.

    Args:
        teacher: its trace, with masks and scaling. allowed: bool `[batch, T_s, T_s]`, what the student's rows may read.

    Returns:
        Probabilities `[batch, student query head, T_s, T_s]`, and the share of each row that fell outside `allowed` or on
        teacher tokens no student token reads, `[batch, student query head, T_s]`; NaN for a row that reads nothing. What
        the teacher's attention sinks take lies on no token: it is not counted.
    """
    device = allowed.device
    shares = aligner.layer_matrix[layer]
    heads = normalised(head_weights(aligner.projector("q"), layer)).to(device)
    mixed: Tensor | float = 0.0
    for source in shares.nonzero().flatten().tolist():
        mixed = mixed + float(shares[source]) * einsum(
            heads,
            teacher.attention(source).to(device),
            "student_head teacher_head, batch teacher_head query key -> batch student_head query key",
        )
    by_head = "batch student teacher -> batch 1 student teacher"
    rows = rearrange(warp.matrix().to(device), by_head) @ mixed
    carried = rows @ rearrange(warp.spread().to(device), by_head).mT
    kept = carried.masked_fill(~allowed[:, None], 0.0)
    mass, total = kept.sum(-1, keepdim=True), rows.sum(-1, keepdim=True)
    outside = torch.where(total > 0, 1 - mass / total.where(total > 0, 1.0), torch.nan).clamp(0, 1)
    return torch.where(mass > 0, kept / mass.where(mass > 0, 1.0), 0.0), outside[..., 0]
