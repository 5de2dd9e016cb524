"""The time warp as data: for each student position, the few teacher positions it reads and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from einops import einsum, rearrange
from torch import Tensor

# Up to this many taps a row they are gathered one by one; beyond, one matrix product is cheaper.
GATHERED_TAPS = 4


@dataclass(frozen=True, eq=False)
class Warp:
    """A row-stochastic map from T_t teacher positions onto T_s student positions, per sample.

    index: LongTensor [B, T_s, K], teacher positions read (CPU); weight: float32 [B, T_s, K], summing to 1 over K, or to 0 in
    a padding row; T_t: teacher length; source: bool [B, T_t], which teacher positions hold tokens (None: all).
    """

    index: Tensor
    weight: Tensor
    T_t: int
    source: Tensor | None = None

    @property
    def T_s(self) -> int:
        return self.index.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """x [B, L, H, T_t, D] → [B, L, H, T_s, D] in x's dtype and on its device; summed in at least float32.

        A warp of one sample serves a batch of any size. Raises ValueError when the shapes do not fit. Differentiable in x.
        """
        if x.ndim != 5 or x.shape[3] != self.T_t or self.index.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"this warp takes [{self.index.shape[0]}, L, H, {self.T_t}, D], got {tuple(x.shape)}"
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.index.shape[2] > GATHERED_TAPS:
            dense = self.matrix().to(x.device, dtype).expand(x.shape[0], -1, -1)
            pattern = "batch student teacher, batch layer head teacher dim -> batch layer head student dim"
            return einsum(dense, x.to(dtype), pattern).to(x.dtype)
        # Whole rows are copied, one for each head and student position, where gather would look up every number.
        rows = rearrange(x, "batch layer head teacher dim -> (batch layer head teacher) dim")
        first = torch.arange(0, len(rows), self.T_t, device=x.device).view(*x.shape[:3], 1)
        index = rearrange(self.index.to(x.device), "batch student tap -> tap batch 1 1 student")
        weight = rearrange(self.weight.to(x.device, dtype), "batch student tap -> tap batch 1 1 student 1")
        shape = (*x.shape[:3], self.T_s, x.shape[4])
        taps = [
            tap_weight * rows.index_select(0, (first + tap_index).flatten()).view(shape)
            for tap_index, tap_weight in zip(index, weight, strict=True)
        ]
        return reduce(torch.add, taps).to(x.dtype)

    def matrix(self) -> Tensor:
        """W [B, T_s, T_t], float32: rows sum to 1, or to 0 where the student position is padding."""
        dense = torch.zeros(*self.index.shape[:2], self.T_t)
        return dense.scatter_add_(2, self.index, self.weight)

    def spread(self) -> Tensor:
        """The mass-conserving transpose, laid out as W: C [B, T_s, T_t], float32, C[s, t] = W[s, t] / Σ_s W[s, t].

        What lies on teacher position t is shared among the student positions that read it; a column of zeros (t is unread)
        is mass that falls outside. Teacher attention A in student time is W · A · Cᵀ.
        """
        dense = self.matrix()
        mass = dense.sum(dim=1, keepdim=True)
        return dense / torch.where(mass > 0, mass, torch.ones_like(mass))

    def centre(self) -> Tensor:
        """[B, T_s] float64: the mean teacher position each student position reads, NaN in padding rows."""
        weight = self.weight.double()
        total = weight.sum(dim=2)
        centre = (weight * self.index).sum(dim=2) / total
        return centre.masked_fill(total == 0, torch.nan)

    def stretch(self) -> Tensor:
        """[B, T_s] float32: teacher tokens per student token, 0 in padding rows.

        Each student position owns the teacher axis half-way to the centres of its neighbours, the first and the last up
        to the ends of the teacher's text, so a row sums to the teacher's length. Negative where the warp reads backwards.
        """
        stretch = torch.zeros(self.index.shape[:2], dtype=torch.float64)
        centres = self.centre()
        for sample, tokens in enumerate(self._source()):
            rows = (~centres[sample].isnan()).nonzero().flatten()
            if len(rows) == 0:
                continue
            centre = centres[sample, rows]
            held = tokens.nonzero().flatten()
            borders = torch.cat(
                [held[:1].double() - 0.5, (centre[1:] + centre[:-1]) / 2, held[-1:].double() + 0.5]
            )
            stretch[sample, rows] = borders.diff()
        return stretch.float()

    def unread(self) -> list[list[int]]:
        """Per sample, the teacher positions that hold a token and that no student position reads."""
        read = self.matrix().sum(dim=1) > 0
        return [
            (tokens & ~seen).nonzero().flatten().tolist()
            for tokens, seen in zip(self._source(), read, strict=True)
        ]

    def repeated(self) -> list[list[int]]:
        """Per sample, the teacher positions that two or more student positions each read with weight 0.5 or more."""
        # A hair below one half: two equal taps of float32 are each 0.5 up to rounding.
        readers = (self.matrix() >= 0.5 - 1e-6).sum(dim=1)
        return [(count >= 2).nonzero().flatten().tolist() for count in readers]

    def _source(self) -> Tensor:
        if self.source is None:
            return torch.ones(self.index.shape[0], self.T_t, dtype=torch.bool)
        return self.source
