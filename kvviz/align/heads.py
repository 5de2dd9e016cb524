"""The structured projector: a head mixer and a head-dim projection, five axes from end to end.

    y[h_s, d_s] = Σ_{h_t, d_t} A[h_s, h_t] · P[d_s, d_t] · x[h_t, d_t]  (+ offset[h_s, d_s])

A is `head_mixer`, P is `dim_proj` (one for all student heads, or one for each). The dense map over all
(head, dim) pairs would be the Kronecker product A ⊗ P: the v4.0 report's answer to flattening.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn


def uniform_mixer(student_heads: int, teacher_heads: int) -> Tensor:
    """Row h is 1/n over teacher heads `int(h·H_t/H_s)` to `int((h+1)·H_t/H_s)`; `[H_s, H_t]`, rows sum to 1.

    Where H_t < H_s a group can be empty: that student head reads its nearest teacher head.
    """
    mixer = torch.zeros(student_heads, teacher_heads)
    for head in range(student_heads):
        first = head * teacher_heads // student_heads
        past = max((head + 1) * teacher_heads // student_heads, first + 1)
        mixer[head, first:past] = 1.0 / (past - first)
    return mixer


def check_axes(x: Tensor, heads: int, dims: int) -> None:
    """Raises ValueError unless x is `[batch, layer, heads, position, dims]`."""
    if x.ndim != 5 or x.shape[2] != heads or x.shape[4] != dims:
        raise ValueError(
            f"expected [batch, layer, {heads} heads, position, {dims} dims], got {list(x.shape)}"
        )


class HeadwiseMapProjector(nn.Module):
    """`[batch, layer, teacher_head, position, teacher_dim]` → the same axes with the student's heads and dims.

    Args:
        H_t, H_s: teacher and student heads (KV heads for K and V, query heads for Q).
        D_t, D_s: teacher and student head dim.
        share_dim_proj: one `dim_proj` `[D_s, D_t]` for all student heads, or `[H_s, D_s, D_t]`.
        init_uniform: `head_mixer` starts at `uniform_mixer`, else random; `dim_proj` starts random either way,
            as in the v4.0 report.
        num_layers: None shares one map over all layers; a number gives each student layer its own, and every
            parameter a leading layer axis.
        offset: add a learned constant `[H_s, D_s]`, zero at the start.
        offset_layers: give each layer its own constant even where the map is shared (means differ by layer).
    """

    def __init__(
        self,
        H_t: int,
        H_s: int,
        D_t: int,
        D_s: int,
        share_dim_proj: bool = True,
        init_uniform: bool = True,
        *,
        num_layers: int | None = None,
        offset: bool = False,
        offset_layers: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("H_t", H_t),
            ("H_s", H_s),
            ("D_t", D_t),
            ("D_s", D_s),
            ("num_layers", num_layers),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        self.H_t, self.H_s, self.D_t, self.D_s = H_t, H_s, D_t, D_s
        self.share_dim_proj, self.init_uniform, self.num_layers = share_dim_proj, init_uniform, num_layers
        layers = () if num_layers is None else (num_layers,)
        heads = () if share_dim_proj else (H_s,)
        self.head_mixer = nn.Parameter(torch.empty(*layers, H_s, H_t))
        self.dim_proj = nn.Parameter(torch.empty(*layers, *heads, D_s, D_t))
        constants = layers if offset_layers is None else (offset_layers,)
        self.offset = nn.Parameter(torch.empty(*constants, H_s, D_s)) if offset else None
        # How many layers an input must have: None where nothing differs by layer.
        self.layers = num_layers if num_layers is not None or not offset else offset_layers
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start: uniform or random mixer, random projection (Glorot, over the last two axes), zero offset."""
        with torch.no_grad():
            if self.init_uniform:
                self.head_mixer.copy_(uniform_mixer(self.H_s, self.H_t).expand_as(self.head_mixer))
            else:
                _glorot_(self.head_mixer)
            _glorot_(self.dim_proj)
            if self.offset is not None:
                self.offset.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Project `[batch, layer, teacher_head, position, teacher_dim]`; raises ValueError for any other shape."""
        check_axes(x, self.H_t, self.D_t)
        if self.layers is not None and x.shape[1] != self.layers:
            raise ValueError(
                f"this projector has parameters for each of {self.layers} layers, got {x.shape[1]} layers"
            )
        # A projection for each student head can only follow the mixing.
        if not self.share_dim_proj or self.mix_heads_first():
            y = self._project_dims(self._mix_heads(x))
        else:
            y = self._mix_heads(self._project_dims(x))
        if self.offset is not None:
            y = y + rearrange(self.offset.to(x.dtype), "... head dim -> ... head 1 dim")
        return y

    # Plain products of matrices as they lie in memory: einsum would copy x to bring what is summed over to the end.

    def _mix_heads(self, x: Tensor) -> Tensor:
        rows = rearrange(x, "batch layer head position dim -> batch layer head (position dim)")
        return (self.head_mixer.to(x.dtype) @ rows).unflatten(3, x.shape[3:])

    def _project_dims(self, x: Tensor) -> Tensor:
        weight = self.dim_proj.to(x.dtype).mT
        if not self.share_dim_proj or self.num_layers is None:
            return x @ weight
        # All heads of a layer are rows of one product.
        rows = rearrange(x, "batch layer head position dim -> batch layer (head position) dim")
        return (rows @ weight).unflatten(2, x.shape[2:4])

    def mix_heads_first(self) -> bool:
        """The cheaper order, by multiplications a position: heads then dims, or dims then heads."""
        heads_first = self.H_s * self.H_t * self.D_t + self.H_s * self.D_t * self.D_s
        dims_first = self.H_t * self.D_t * self.D_s + self.H_s * self.H_t * self.D_s
        return heads_first <= dims_first

    def dense(self) -> Tensor:
        """The same map written out, `[…layer, student_head, student_dim, teacher_head, teacher_dim]`."""
        head = "" if self.share_dim_proj else "student_head "
        return einsum(
            self.head_mixer,
            self.dim_proj,
            f"... student_head teacher_head, ... {head}student_dim teacher_dim "
            "-> ... student_head student_dim teacher_head teacher_dim",
        )


def _glorot_(parameter: Tensor) -> None:
    for matrix in parameter.view(-1, *parameter.shape[-2:]):
        nn.init.xavier_uniform_(matrix)
