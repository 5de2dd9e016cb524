"""Rope: the rotation a model gives its queries and keys, in a form that no longer depends on the model.

Families pair dims differently (halves in Llama, neighbours in Cohere), rotate all dims or some, scale the
rotation (yarn) or leave it out in some layers. All of that is one formula for each dim d and position t,

    y[t, d] = cos[t, d] · x[t, d] + sin[t, d] · x[t, partner[d]],

where the sign lives in `sin`. The model's own function is never rewritten here: it is probed as a black box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

# (q, k, cos, sin) -> (q, k), with q and k [B, H, T, D] and cos and sin as the model's layers get them.
Apply = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class RopeError(ValueError):
    """A rotation that is not of the form above, so it cannot be undone."""


@dataclass(frozen=True)
class Rope:
    """Rotation of every layer at given positions.

    Attributes:
        partner: int64 [D], the other dim of each dim's pair; itself where a dim is not rotated.
        cos, sin: float32 [kinds, B, T, D]; B may be 1 and then holds for any batch.
        kinds: for each of the L layers, which kind of rotation it has. Layers without one have cos 1, sin 0.
    """

    partner: Tensor
    cos: Tensor
    sin: Tensor
    kinds: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions T."""
        return self.cos.shape[2]

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate [B, L, H, T, D], each layer by its own kind; in float32 or wider."""
        cos, sin = self._tables(x)
        x = x.to(cos.dtype)
        return cos * x + sin * x[..., self.partner]

    def unrotate(self, x: Tensor) -> Tensor:
        """Undo `rotate`: each pair is a 2×2 matrix, inverted in closed form, so scaled rotations come back too."""
        cos, sin = self._tables(x)
        x = x.to(cos.dtype)
        determinant = cos * cos[..., self.partner] - sin * sin[..., self.partner]
        return (cos[..., self.partner] * x - sin * x[..., self.partner]) / determinant

    def first(self, length: int) -> Rope:
        """The first `length` positions.

        Raises:
            ValueError: the rotation is known for fewer; `rope_at` makes it for any positions.
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"rotations are known for {self.length} positions, {length} were asked for")
        return replace(self, cos=self.cos[:, :, :length], sin=self.sin[:, :, :length])

    def layer(self, index: int) -> Rope:
        """One layer's rotation, for x with L = 1."""
        kind = self.kinds[index]
        return replace(self, cos=self.cos[kind : kind + 1], sin=self.sin[kind : kind + 1], kinds=(0,))

    def sample(self, index: int) -> Rope:
        """One text's rotation, with B = 1."""
        index = index if self.cos.shape[1] > 1 else 0
        return replace(self, cos=self.cos[:, index : index + 1], sin=self.sin[:, index : index + 1])

    def to(self, device: torch.device | str) -> Rope:
        """The same rotation on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("partner", "cos", "sin")})

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin as [B, L, 1, T, D], in the precision to compute in."""
        if x.ndim != 5 or x.shape[1] != len(self.kinds) or x.shape[3:] != self.cos.shape[2:]:
            raise ValueError(
                f"a rotation of {len(self.kinds)} layers, {self.length} positions and {self.cos.shape[3]} dims "
                f"does not fit x of shape {list(x.shape)}, read as [B, L, H, T, D]"
            )
        one = len(set(self.kinds)) == 1
        layers = (
            self.kinds[:1] if one else self.kinds
        )  # one kind broadcasts over the layers instead of being copied
        precision = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (table[list(layers)].to(precision) for table in (self.cos, self.sin))
        axes = "layer batch position dim -> batch layer 1 position dim"
        return rearrange(cos, axes), rearrange(sin, axes)
