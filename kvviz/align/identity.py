"""The parameter-free map: the honest zero line of every figure."""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor, nn

from kvviz.align.heads import check_axes, uniform_mixer


class IdentityProjector(nn.Module):
    """Group means over heads, the first min(D_t, D_s) dims, zeros beyond; no parameters.

    `[batch, layer, teacher_head, position, teacher_dim]` → the same axes with the student's heads and dims.
    """

    head_mixer: Tensor

    def __init__(self, H_t: int, H_s: int, D_t: int, D_s: int) -> None:
        super().__init__()
        self.H_t, self.H_s, self.D_t, self.D_s = H_t, H_s, D_t, D_s
        self.register_buffer("head_mixer", uniform_mixer(H_s, H_t), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError where x is not `[batch, layer, H_t, position, D_t]`."""
        check_axes(x, self.H_t, self.D_t)
        mixed = einsum(
            x,
            self.head_mixer.to(x.dtype),
            "batch layer teacher_head position dim, student_head teacher_head -> batch layer student_head position dim",
        )
        # A negative pad crops, so this cuts where D_t > D_s and fills with zeros where D_t < D_s.
        return nn.functional.pad(mixed, (0, self.D_s - self.D_t))

    def dense(self) -> Tensor:
        """The same map written out, `[student_head, student_dim, teacher_head, teacher_dim]`."""
        return einsum(
            self.head_mixer,
            torch.eye(self.D_s, self.D_t, device=self.head_mixer.device),
            "student_head teacher_head, student_dim teacher_dim -> student_head student_dim teacher_head teacher_dim",
        )
