"""One step of a run's timeline: its head mixer and its errors head by head, in colours that hold for the whole run."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.errors import METRICS
from kvviz.figures.heatmap import Scale, cells
from kvviz.figures.theme import Theme

WIDTH = 380


def mixer_at(
    weights: np.ndarray,
    whole: np.ndarray,
    *,
    theme: Theme,
    part: str,
    signed: bool,
    width: int = WIDTH,
    height: int | None = None,
) -> go.Figure:
    """A head mixer [H_s, H_t] of `part`. whole: all weights it ever had, which the colours span.

    signed: diverging about zero; else norms of blocks, from zero.
    """
    kind = "query head" if part.lower() == "q" else "KV head"
    return cells(
        weights,
        row_title=f"student {kind}",
        col_title=f"teacher {kind}",
        unit="mixing weight" if signed else "norm of the block",
        theme=theme,
        scale="diverging" if signed else "sequential",
        spanned=whole,
        clip=False,
        width=width,
        height=height,
    )


def error_at(
    values: np.ndarray,
    whole: np.ndarray,
    metric: str,
    *,
    theme: Theme,
    part: str,
    width: int = WIDTH,
) -> go.Figure:
    """A measure [L_s, H_s] of `part` ("k", "v") at one step. whole: all values it ever took, which the colours span."""
    kind = METRICS[metric]
    return _map(
        values, whole, f"{part.upper()} {kind.unit}", "KV head", theme, kind.scale, kind.center, width
    )


def attention_at(values: np.ndarray, whole: np.ndarray, *, theme: Theme, width: int = WIDTH) -> go.Figure:
    """Attention KL [L_s, query heads] at one step, in nats."""
    return _map(values, whole, "attention KL in nats", "query head", theme, "sequential", 0.0, width)


def _map(
    values: np.ndarray,
    whole: np.ndarray,
    unit: str,
    heads: str,
    theme: Theme,
    scale: Scale,
    center: float,
    width: int,
) -> go.Figure:
    return cells(
        values,
        row_title="student layer",
        col_title=f"student {heads}",
        unit=unit,
        theme=theme,
        scale=scale,
        center=center,
        spanned=whole,
        clip=False,
        width=width,
    )
