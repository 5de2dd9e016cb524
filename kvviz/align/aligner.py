"""MapProjectionAligner: the teacher's K, V and Q in the student's geometry.

Three linear stages, in this order: layers (a row-stochastic map), time (a segment-wise warp), heads and
dims (one projector each for Q, K and V).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from kvviz.align.flat import FlatProjector
from kvviz.align.heads import HeadwiseMapProjector
from kvviz.align.identity import IdentityProjector
from kvviz.align.layers import layer_map
from kvviz.align.time import TimeWarper
from kvviz.align.warp import Warp
from kvviz.config import AlignmentConfig, FlatKind, Mode
from kvviz.geometry import Geometry, Part
from kvviz.rope import Rope

PARTS: tuple[Part, ...] = get_args(Part)


def as_geometry(model: Any) -> Geometry:
    """A `Geometry` as it is, or read from a transformers config."""
    return model if isinstance(model, Geometry) else Geometry.from_config(model)


Projector = HeadwiseMapProjector | FlatProjector | IdentityProjector


class MapProjectionAligner(nn.Module):
    """Carry a teacher's q, k, v `[batch, layer, head, position, dim]` into a student's geometry.

    Args:
        teacher, student: transformers configs or `Geometry`.
        mode: `structured` (head mixer and dim projection), `flat` (one matrix a layer), `identity` (no parameters).
        layer_mapping_strategy: `uniform`, `ratio`, `skip`, or an explicit `[L_s, L_t]` matrix (rows are renormalised).
        share_dim_proj, init_uniform: of the structured projectors, as in `HeadwiseMapProjector`.
        share_layers: one map for all layers (the v4.0 report) or one for each student layer.
        offset: a constant for each student head and dim beside each map; off in the report's form.
        flat_kind: of the flat projectors, as in `KVDimensionProjector`.
        ratio_map, alpha_map: by segment id, of the time warp, as in `TimeWarper`.
        time_method: `linear` or `area`, how positions inside a segment are read.
        seed: of the starting points; None draws from torch's global generator.
    """

    layer_matrix: Tensor

    def __init__(
        self,
        teacher: Any,
        student: Any,
        mode: Mode = "structured",
        layer_mapping_strategy: str | Tensor | Sequence[Sequence[float]] = "uniform",
        share_dim_proj: bool = True,
        init_uniform: bool = True,
        share_layers: bool = True,
        *,
        offset: bool = False,
        flat_kind: FlatKind = "linear",
        ratio_map: dict[int, float] | None = None,
        alpha_map: dict[int, float] | None = None,
        time_method: Literal["linear", "area"] = "linear",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
        self.teacher, self.student = as_geometry(teacher), as_geometry(student)
        self.mode, self.share_dim_proj, self.share_layers = mode, share_dim_proj, share_layers
        self.time_warper = TimeWarper(ratio_map=ratio_map, alpha_map=alpha_map, method=time_method)
        self.register_buffer(
            "layer_matrix",
            layer_map(self.student.layers, self.teacher.layers, layer_mapping_strategy),
            persistent=False,
        )
        layers: dict[str, Any] = {
            "num_layers": None if share_layers else self.student.layers,
            "offset": offset,
            # Layers have means of their own, also where they share a map.
            "offset_layers": self.student.layers,
        }

        def projector(part: Part) -> Projector:
            sizes = (
                self.teacher.heads_of(part),
                self.student.heads_of(part),
                self.teacher.dim_of(part),
                self.student.dim_of(part),
            )
            if mode == "identity":
                return IdentityProjector(*sizes)
            if mode == "flat":
                return FlatProjector(*sizes, kind=flat_kind, **layers)
            return HeadwiseMapProjector(*sizes, share_dim_proj, init_uniform, **layers)

        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.projectors = nn.ModuleDict({part: projector(part) for part in PARTS})

    @classmethod
    def from_config(
        cls, teacher: Any, student: Any, config: AlignmentConfig, layer_matrix: Tensor | None = None
    ) -> MapProjectionAligner:
        """The aligner an `AlignmentConfig` describes, at its starting point (`kvviz.align.fit` fits it).

        Args:
            layer_matrix: what stands in for strategies that need more than the two geometries (`cka`).
        """
        strategy: Any = config.layer_mapping_strategy
        if layer_matrix is not None:
            strategy = layer_matrix
        elif strategy == "custom":
            strategy = config.layer_matrix
        elif strategy == "cka":
            raise ValueError("the cka layer map is measured on a prompt: pass it as layer_matrix")
        elastic = config.kv_projection_mode == "flat" and config.flat_kind == "elastic"
        return cls(
            teacher,
            student,
            mode=config.kv_projection_mode,
            layer_mapping_strategy=strategy,
            share_dim_proj=config.share_dim_proj,
            init_uniform=config.init != "random",
            share_layers=config.share_layers or elastic,
            offset=config.offset,
            flat_kind=config.flat_kind,
            seed=config.seed,
            **_time_options(config),
        )

    def projector(self, part: Part) -> Projector:
        """The projector of q, k or v."""
        return self.projectors[part]

    def parameter_count(self) -> int:
        """Number of trainable parameters; 3 · (H_s·H_t + D_s·D_t) for the report's shared structured form."""
        return sum(parameter.numel() for parameter in self.parameters())

    def map_layers(self, x: Tensor) -> Tensor:
        """`[batch, teacher_layer, …]` → `[batch, student_layer, …]`: weighted means of teacher layers."""
        if x.ndim != 5 or x.shape[1] != self.teacher.layers:
            raise ValueError(
                f"expected [batch, {self.teacher.layers} layers, head, position, dim], got {list(x.shape)}"
            )
        # One product with layers as rows as they lie in memory: einsum would copy x to put them last.
        rows = rearrange(x, "batch layer head position dim -> batch layer (head position dim)")
        return (self.layer_matrix.to(x) @ rows).unflatten(2, x.shape[2:])

    def forward(
        self,
        k_t: Tensor,
        v_t: Tensor,
        q_t: Tensor,
        segment_ids: Tensor | None = None,
        T_s: int | None = None,
        target_segment_ids: Tensor | None = None,
        *,
        warp: Warp | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Align: layers → time → heads and dims.

        Args:
            k_t, v_t, q_t: `[batch, L_t, heads, T_t, dim]` of the teacher; K and V with KV heads, Q with query heads.
            segment_ids: `[batch, T_t]`, −1 at padding.
            T_s: target positions; T_t when None.
            target_segment_ids: `[batch, T_s]`, the student's own segments; else lengths follow the ratios.
            warp: a ready time warp (such as `text_warp`), used in place of the segments.

        Returns:
            `(k, v, q)`, each `[batch, L_s, student heads, T_s, student dim]`.
        """
        if warp is None:
            if segment_ids is None:
                raise ValueError("align needs segment_ids [batch, T_t], or a ready warp")
            if segment_ids.shape != (k_t.shape[0], k_t.shape[3]):
                raise ValueError(
                    f"segment_ids must be [batch, T_t] = {[k_t.shape[0], k_t.shape[3]]}, got {list(segment_ids.shape)}"
                )
            if T_s is None and target_segment_ids is None and not self.time_warper.ratio_map:
                # As long as the teacher and nothing redistributed: every token stays, and padding stays padding.
                target_segment_ids = segment_ids
            warp = self.time_warper.warp(
                segment_ids, k_t.shape[3] if T_s is None else T_s, target_segment_ids
            )
        return self.carry("k", k_t, warp), self.carry("v", v_t, warp), self.carry("q", q_t, warp)

    def carry(self, part: Part, x: Tensor, warp: Warp, rotation: Rope | None = None) -> Tensor:
        """One part alone: `[batch, L_t, heads, T_t, dim]` → `[batch, L_s, student heads, T_s, student dim]`.

        rotation: what x is still rotated by, undone on the way.
        """
        if rotation is None:
            mapped = self.map_layers(x)
        elif rotation.alike:
            # A mean of layers that are all rotated alike is the mean rotated: the student's fewer layers are less to undo.
            mapped = rotation.to(x.device).over(self.student.layers).unrotate(self.map_layers(x))
        else:
            mapped = self.map_layers(rotation.to(x.device).unrotate(x))
        return self.projectors[part](warp.apply(mapped))


def time_warper(config: AlignmentConfig) -> TimeWarper:
    """The segment-wise time warper an `AlignmentConfig` describes."""
    options = _time_options(config)
    return TimeWarper(
        ratio_map=options["ratio_map"], alpha_map=options["alpha_map"], method=options["time_method"]
    )


def _time_options(config: AlignmentConfig) -> dict[str, Any]:
    return {
        "ratio_map": dict(config.ratio_map),
        "alpha_map": dict(config.alpha_map),
        "time_method": "area" if config.time_method == "area" else "linear",
    }
