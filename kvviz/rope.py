"""Rope: the rotation a model gives its queries and keys, in a form that no longer depends on the model.

Families pair dims differently (halves in Llama, neighbours in Cohere), rotate all dims or some, scale the
rotation (yarn) or leave it out in some layers. All of that is one formula for each dim d and position t,

    y[t, d] = cos[t, d] · x[t, d] + sin[t, d] · x[t, partner[d]],

where the sign lives in `sin`. The model's own function is never rewritten here: it is probed as a black box.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from kvviz.pair import LoadedModel

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

    @property
    def alike(self) -> bool:
        """Whether every layer is rotated in the same way."""
        return len(set(self.kinds)) == 1

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate [B, L, H, T, D], each layer by its own kind; in float32 or wider."""
        cos, sin = self._tables(x)
        return self._combined(x.to(cos.dtype), cos, sin)

    def unrotate(self, x: Tensor) -> Tensor:
        """Undo `rotate`: each pair is a 2×2 matrix, inverted in closed form, so scaled rotations come back too."""
        cos, sin = self._tables(x)
        determinant = cos * cos[..., self.partner] - sin * sin[..., self.partner]
        return self._combined(x.to(cos.dtype), cos[..., self.partner] / determinant, -sin / determinant)

    def _combined(self, x: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """own · x + other · x[partner]."""
        # gather along the last axis: indexing with [..., partner] would move whole columns, several times slower on a CPU.
        return torch.addcmul(own * x, other, x.gather(-1, self.partner.to(x.device).expand_as(x)))

    def first(self, length: int) -> Rope:
        """The first `length` positions.

        Raises:
            ValueError: the rotation is known for fewer; `rope_at` makes it for any positions.
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"rotations are known for {self.length} positions, {length} were asked for")
        return replace(self, cos=self.cos[:, :, :length], sin=self.sin[:, :, :length])

    def over(self, layers: int) -> Rope:
        """The rotation that all layers share, for another number of them.

        Raises:
            ValueError: they share none.
        """
        if not self.alike:
            raise ValueError("these layers are rotated in different ways: none stands for all")
        return replace(self, kinds=self.kinds[:1] * layers)

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
        # One kind broadcasts over the layers instead of being copied.
        layers = self.kinds[:1] if self.alike else self.kinds
        precision = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (table[list(layers)].to(precision) for table in (self.cos, self.sin))
        axes = "layer batch position dim -> batch layer 1 position dim"
        return rearrange(cos, axes), rearrange(sin, axes)


@dataclass(frozen=True)
class Source:
    """Where one kind of rotation comes from: the model's rotary module and how the model calls it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own cos and sin at positions [B, T]."""
        args = [positions if _are_positions(argument) else argument for argument in self.args]
        kwargs = {key: positions if _are_positions(value) else value for key, value in self.kwargs.items()}
        return self.module(*args, **kwargs)


def _are_positions(argument: Any) -> bool:
    return isinstance(argument, Tensor) and not argument.is_floating_point()


@dataclass(frozen=True)
class Rotary:
    """How a model rotates: all that is needed to write down a Rope for any of its forwards.

    Attributes:
        apply: the family's own function, made to take whole heads.
        partner: int64 [D], as in Rope.
        rotated: for each layer, whether it rotates at all.
        sources: the distinct rotary calls; source_of: for each layer, which of them (−1: not rotated).
    """

    apply: Apply
    partner: Tensor
    rotated: tuple[bool, ...]
    sources: tuple[Source, ...]
    source_of: tuple[int, ...]

    def rope(self, embeddings: Sequence[tuple[Tensor, Tensor] | None]) -> Rope:
        """The rotation of a forward, from what each layer was given as (cos, sin)."""
        kinds: list[int] = []
        index: dict[int | None, int] = {}
        tables: list[tuple[Tensor, Tensor] | None] = []
        for rotated, pair in zip(self.rotated, embeddings, strict=True):
            key = id(pair[0]) if rotated and pair is not None else None
            if key not in index:
                index[key] = len(tables)
                tables.append(None if key is None else self._table(*pair))  # type: ignore[misc]
            kinds.append(index[key])
        shape = next(table[0] for table in tables if table is not None)
        identity = torch.ones_like(shape), torch.zeros_like(shape)
        cos, sin = zip(*(identity if table is None else table for table in tables), strict=True)
        return Rope(self.partner, torch.stack(cos), torch.stack(sin), tuple(kinds))

    @torch.no_grad()
    def at(self, positions: Tensor) -> Rope:
        """The rotation at positions [B, T], from the model's own rotary module."""
        pairs = [source(positions) for source in self.sources]
        return self.rope([pairs[source] if source >= 0 else None for source in self.source_of])

    @torch.no_grad()
    def _table(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Canonical cos and sin [B, T, D], read off the family's function with two vectors.

        A vector that is 1 at the first member of every pair and 0 at the other comes out as cos at the first
        and as sin at the second; the opposite vector gives the rest.
        """
        cos, sin = cos.float(), sin.float()
        batch, length = cos.shape[:2]
        dims = torch.arange(len(self.partner), device=cos.device)
        partner = self.partner.to(cos.device)
        first = (dims <= partner).to(cos)
        second = 1.0 - first
        x = torch.stack([first, second])[None, :, None].expand(batch, 2, length, -1)
        _, y = self.apply(x, x, cos, sin)
        from_first, from_second = y.float().unbind(1)
        canonical_cos = first * from_first + second * from_second
        canonical_sin = second * from_first + first * from_second
        return canonical_cos, canonical_sin


def probe(function: Callable[..., Any], cos: Tensor, head_dim: int) -> tuple[Apply, Tensor]:
    """Find out how a family pairs the dims of a head, without knowing the family.

    Every basis vector is rotated by an angle of cosine 0.6 and sine 0.8: where it comes out besides its own
    dim is that dim's partner.

    Args:
        function: `apply_rotary_pos_emb` of the family, taking (q, k, cos, sin) or (x, cos, sin).
        cos: as a layer got it, [B, T, C]. C is D, or the rotated part of it, or half of it.
        head_dim: D.

    Returns:
        The function on whole heads, and partner [D].

    Raises:
        RopeError: the function does not rotate pairs of dims.
    """
    if cos.ndim != 3:
        raise RopeError(f"its position embeddings have {cos.ndim} axes, not [B, T, dims]")
    takes_one = "k" not in inspect.signature(function).parameters

    def whole(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return (function(q, cos, sin), function(k, cos, sin)) if takes_one else function(q, k, cos, sin)[:2]

    def part(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate the first dims and leave the others, as attention layers of the partial kind do themselves."""
        width = cos.shape[-1]
        q_part, k_part = whole(q[..., :width], k[..., :width], cos, sin)
        return torch.cat([q_part, q[..., width:]], -1), torch.cat([k_part, k[..., width:]], -1)

    try:
        return whole, _partners(whole, cos, head_dim)
    except (RuntimeError, RopeError) as error:
        if cos.shape[-1] >= head_dim:
            raise RopeError(f"its rotation cannot be read off: {error}") from error
    return part, _partners(part, cos, head_dim)


@torch.no_grad()
def _partners(apply: Apply, like: Tensor, head_dim: int) -> Tensor:
    """partner [D] of a rotation; RopeError unless each dim mixes with one other at most, and that one with it."""
    cos = torch.full((1, 1, like.shape[-1]), 0.6, device=like.device)
    sin = torch.full_like(cos, 0.8)
    basis = torch.eye(head_dim, device=like.device)
    _, rotated = apply(basis[None, :, None], basis[None, :, None], cos, sin)
    mixes = rotated[0, :, 0].float().T.abs() > 1e-6  # [out, in]
    others = mixes & ~basis.bool()
    dims = torch.arange(head_dim, device=like.device)
    partner = torch.where(others.any(1), others.int().argmax(1), dims)
    if not mixes.diagonal().all() or others.sum(1).max() > 1 or not torch.equal(partner[partner], dims):
        raise RopeError("its rotation does not act on pairs of dims")
    return partner


def rope_at(loaded: LoadedModel, positions: Tensor) -> Rope:
    """The rotation a loaded model gives to int64 positions [B, T], without running the model.

    Raises:
        RopeError: the model has no rotary positions.
    """
    if loaded.rotary is None:
        raise RopeError(f"{loaded.name} has no rotary positions that can be read: {loaded.rope_note}")
    with loaded.lock:
        return loaded.rotary.at(positions.to(loaded.device))
