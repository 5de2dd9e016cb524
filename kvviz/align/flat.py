"""The flat projector: one matrix over all (head, dim) pairs of a layer, the v4.0 report's baseline."""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from kvviz.align.heads import check_axes


class KVDimensionProjector(nn.Module):
    """`[…, teacher_dim]` → `[…, student_dim]`, where a dim is one (head, dim) pair of a layer.

    Args:
        teacher_dim, student_dim: heads × head dim on each side.
        kind: `linear`, one matrix; `elastic`, LayerNorm → Linear → SiLU → Dropout → Linear, the report's later form.
        num_layers: None shares the projector over layers; a number gives each its own (`linear` only) and the
            input is then `[batch, layer, position, teacher_dim]`.
        offset: a learned constant beside the matrix (`linear` only; the elastic form always has its own).
        offset_layers: give each layer its own constant even where the matrix is shared; the input is then
            `[batch, layer, position, teacher_dim]`.
        dropout: of the elastic form.
    """

    def __init__(
        self,
        teacher_dim: int,
        student_dim: int,
        kind: Literal["linear", "elastic"] = "linear",
        *,
        num_layers: int | None = None,
        offset: bool = True,
        offset_layers: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in ("linear", "elastic"):
            raise ValueError(f"kind is linear or elastic, not {kind!r}")
        if teacher_dim < 1 or student_dim < 1:
            raise ValueError(f"both dims must be at least 1, not {teacher_dim} and {student_dim}")
        if kind == "elastic" and num_layers is not None:
            raise ValueError("the elastic projector is shared over layers; set share_layers to use it")
        self.teacher_dim, self.student_dim, self.kind, self.num_layers = (
            teacher_dim,
            student_dim,
            kind,
            num_layers,
        )
        if kind == "elastic":
            hidden = max(teacher_dim, student_dim)
            self.net = nn.Sequential(
                nn.LayerNorm(teacher_dim),
                nn.Linear(teacher_dim, hidden),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, student_dim),
            )
            return
        layers = () if num_layers is None else (num_layers,)
        self.weight = nn.Parameter(torch.empty(*layers, student_dim, teacher_dim))
        constants = layers if offset_layers is None else (offset_layers,)
        self.offset = nn.Parameter(torch.zeros(*constants, student_dim)) if offset else None
        # How many layers an input must have: None where nothing differs by layer.
        self.layers = num_layers if num_layers is not None or not offset else offset_layers
        for matrix in self.weight.view(-1, student_dim, teacher_dim):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis; raises ValueError where it is not `teacher_dim` long or the layers do not fit."""
        if x.shape[-1] != self.teacher_dim:
            raise ValueError(
                f"expected a last axis of {self.teacher_dim} (head, dim) pairs, got {x.shape[-1]}"
            )
        if self.kind == "elastic":
            return self.net(x.to(self.net[0].weight.dtype)).to(x.dtype)
        if self.layers is not None and (x.ndim != 4 or x.shape[1] != self.layers):
            raise ValueError(
                f"expected [batch, {self.layers} layers, position, {self.teacher_dim}], got {list(x.shape)}"
            )
        if self.num_layers is None:
            y = nn.functional.linear(x, self.weight.to(x.dtype))
        else:
            y = einsum(
                x,
                self.weight.to(x.dtype),
                "batch layer position teacher_dim, layer student_dim teacher_dim -> batch layer position student_dim",
            )
        if self.offset is None:
            return y
        return y + (self.offset if self.offset.ndim == 1 else self.offset[:, None, :]).to(x.dtype)


class FlatProjector(nn.Module):
    """`KVDimensionProjector` behind five axes: heads and dims are flattened for it and unflattened after."""

    def __init__(self, H_t: int, H_s: int, D_t: int, D_s: int, **kind: Any) -> None:
        super().__init__()
        self.H_t, self.H_s, self.D_t, self.D_s = H_t, H_s, D_t, D_s
        self.projector = KVDimensionProjector(H_t * D_t, H_s * D_s, **kind)

    def forward(self, x: Tensor) -> Tensor:
        """Project `[batch, layer, teacher_head, position, teacher_dim]`; raises ValueError for any other shape."""
        check_axes(x, self.H_t, self.D_t)
        flat = rearrange(x, "batch layer head position dim -> batch layer position (head dim)")
        return rearrange(
            self.projector(flat),
            "batch layer position (head dim) -> batch layer head position dim",
            head=self.H_s,
        )

    def dense(self) -> Tensor:
        """The map written out, `[…layer, student_head, student_dim, teacher_head, teacher_dim]`."""
        if self.projector.kind != "linear":
            raise ValueError("an elastic projector is not linear: it has no matrix to write out")
        return rearrange(
            self.projector.weight,
            "... (student_head student_dim) (teacher_head teacher_dim) "
            "-> ... student_head student_dim teacher_head teacher_dim",
            student_head=self.H_s,
            teacher_head=self.H_t,
        )

    @property
    def offset(self) -> Tensor | None:
        if self.projector.kind != "linear" or self.projector.offset is None:
            return None
        return rearrange(self.projector.offset, "... (head dim) -> ... head dim", head=self.H_s)
