"""How far the teacher's projected keys and values are from the student's own: by head, by token, by dim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.heatmap import PAGE_WIDTH, Bracket, Scale, cells, color_bar, limits
from kvviz.figures.labels import escape, token_axis, x_ticks, y_ticks
from kvviz.figures.theme import Theme, translucent
from kvviz.figures.tokens import token_values


@dataclass(frozen=True)
class Metric:
    """How a measure of a head is drawn: its name, how its colours run, and around what (`kvviz.diagnostics.errors` defines it)."""

    unit: str
    scale: Scale
    center: float


METRICS: dict[str, Metric] = {
    "relative_error": Metric("relative error", "sequential", 0.0),
    "cosine": Metric("cosine similarity", "unit", 0.0),
    "r2": Metric("R²", "unit", 0.0),
    "norm_ratio": Metric("norm ratio", "diverging", 1.0),
}

BANDS = (
    (-1.0, 0.5, "below 0.5"),
    (0.5, 0.8, "0.5 to 0.8"),
    (0.8, 0.95, "0.8 to 0.95"),
    (0.95, 1.0, "above 0.95"),
)


def error_map(
    values: np.ndarray,
    metric: str,
    *,
    theme: Theme,
    part: str = "k",
    selected: tuple[int, int] | None = None,
    baseline: np.ndarray | None = None,
    highlight_rows: Sequence[int] = (),
    highlight_cols: Sequence[int] = (),
    col_brackets: Sequence[Bracket] = (),
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """A metric of every student layer (rows) and head (columns): values [L_s, H_s].

    Args:
        metric: "relative_error", "cosine", "r2" or "norm_ratio" (KeyError otherwise); decides colours and unit. Strong
            colour is always the bad end; the norm ratio is diverging about 1.
        part: "k", "v" or "q", for the axis title.
        baseline: [L_s, H_s], the identity map's values, told in the hover.

    Clicks as in `cells`: [layer, head].
    """
    kind = METRICS[metric]
    values = np.asarray(values, dtype=np.float64)
    hover = None
    if baseline is not None:
        baseline = np.asarray(baseline, dtype=np.float64)
        if baseline.shape != values.shape:
            raise ValueError(f"the baseline has shape {baseline.shape}, the values {values.shape}")
        hover = [[f"identity: {value:.3g}" for value in line] for line in baseline]
    return cells(
        values,
        row_title="student layer",
        col_title=f"student {'query' if part.lower() == 'q' else 'KV'} head",
        unit=f"{part.upper()} {kind.unit}",
        theme=theme,
        scale=kind.scale,
        center=kind.center,
        hover=hover,
        selected=selected,
        highlight_rows=highlight_rows,
        highlight_cols=highlight_cols,
        col_brackets=col_brackets,
        width=width,
    )


def head_matrices(
    projected: np.ndarray,
    student: np.ndarray,
    tokens: Sequence[str],
    *,
    theme: Theme,
    part: str = "k",
    selected: int | None = None,
    width: int = PAGE_WIDTH,
    height: int | None = None,
) -> go.Figure:
    """Teacher-projected, student and their difference, [T, D] each, tokens down, dims across, ONE colour scale.

    Args:
        projected, student: [T, D] in the units of the student's cache. tokens: T texts. selected: a position to frame.

    The scale is diverging about zero and spans both matrices and the difference, clipped at p99 of their sizes.
    Raises ValueError when shapes and tokens do not match.
    """
    projected = np.asarray(projected, dtype=np.float32)
    student = np.asarray(student, dtype=np.float32)
    if projected.shape != student.shape or projected.ndim != 2 or len(tokens) != len(student):
        raise ValueError(
            f"shapes {projected.shape} and {student.shape} for {len(tokens)} tokens: [T, D] twice expected"
        )
    count, dims = student.shape
    panels = [("teacher, projected", projected), ("student", student), ("difference", projected - student)]
    span = limits(np.stack([panel for _, panel in panels]), "diverging")
    plot_height = height or min(max(count * 14, 240), 900)
    ticks_y, left = y_ticks(tokens, plot_height)
    left += 28
    names = [name for name, _ in panels]
    draft = Draft(
        theme,
        {"rows": 1, "cols": 3, "shared_yaxes": True, "horizontal_spacing": 0.02, "subplot_titles": names},
    )
    for index, (name, panel) in enumerate(panels, 1):
        draft.add(
            "heatmap",
            name=name,
            z=panel,
            coloraxis="coloraxis",
            hovertemplate=f"{name}<br>token %{{y}}<br>dim %{{x}}<br><b>%{{z:.4g}}</b><extra></extra>",
            place=(1, index),
        )
    ticks_x, below = x_ticks([str(dim) for dim in range(dims)], (width - left - 92) / 3.1)
    shapes = []
    if selected is not None and 0 <= selected < count:
        shapes = [
            {"type": "rect", "xref": f"x{n} domain", "yref": "y", "x0": 0, "x1": 1}
            | {"y0": selected - 0.5, "y1": selected + 0.5, "line": {"color": theme.accent, "width": 2}}
            for n in ("", "2", "3")
        ]
    bare = {"showgrid": False, "zeroline": False}
    dim_axis = dict(range=[-0.5, dims - 0.5], title={"text": "head dim", "standoff": 2}, **ticks_x, **bare)
    tokens_axis = dict(range=[count - 0.5, -0.5], **token_axis(ticks_y, tokens), **bare)
    axes: dict[str, dict] = {f"xaxis{n}": dim_axis for n in ("", "2", "3")}
    axes |= {f"yaxis{n}": tokens_axis for n in ("", "2", "3")}
    axes["yaxis"] = tokens_axis | {"title": {"text": "student token", "standoff": 4}}
    return draft.figure(
        axes,
        height=plot_height + below + 60,
        margin={"l": left, "r": 92, "t": 26, "b": below + 28},
        coloraxis={
            "cmin": span.low,
            "cmax": span.high,
            "colorscale": [list(stop) for stop in theme.diverging],
            "colorbar": color_bar(span.title(f"{part.upper()} entry (one scale)"), theme),
        },
        dragmode="pan",
        shapes=shapes,
    )


def cosine_histogram(
    cosines: np.ndarray, *, theme: Theme, unit: str = "cosine of a token's vectors"
) -> go.Figure:
    """Histogram of cosines [N] (NaN left out) in 40 bins, with the share of tokens in the 0.5 / 0.8 / 0.95 bands.

    The axis runs from 1 down to the smallest cosine, at most to −1 and at least to 0. Raises ValueError without a finite value.
    """
    values = np.asarray(cosines, dtype=np.float64).ravel()
    values = np.clip(values[np.isfinite(values)], -1.0, 1.0)
    if not values.size:
        raise ValueError("no finite cosine to draw")
    low = min(0.0, float(np.floor(values.min() * 10) / 10))
    counts, edges = np.histogram(values, bins=40, range=(low, 1.0))
    colors = (theme.bad, theme.student, theme.teacher, theme.good)
    draft = Draft(theme)
    draft.add(
        "bar",
        name="tokens",
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges) * 0.94,
        marker={"color": theme.text, "opacity": 0.75},
        customdata=np.stack([edges[:-1], edges[1:]], axis=1),
        hovertemplate="cosine %{customdata[0]:.3f} to %{customdata[1]:.3f}<br><b>%{y}</b> tokens<extra></extra>",
    )
    shapes, notes = [], []
    # The best bands are a few pixels wide: their shares are written in a row above, in the bands' colours.
    for index, ((start, end, name), color) in enumerate(zip(BANDS, colors, strict=True)):
        inside = (values >= start) & (values < end) if end < 1 else values >= start
        shapes.append(
            {"type": "rect", "xref": "x", "yref": "paper", "x0": max(start, low), "x1": end, "y0": 0, "y1": 1}
            | {"fillcolor": translucent(color, 0.16), "line": {"width": 0}, "layer": "below"}
        )
        notes.append(
            {"x": index / 4, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
            | {"yshift": 4, "showarrow": False, "font": {"size": 12, "color": color}}
            | {"text": f"■ {name}: <b>{inside.mean():.0%}</b>"}
        )
    ticks = [n for n in (-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.5, 0.8, 0.95, 1) if n >= low]
    return draft.figure(
        height=250,
        margin={"l": 54, "r": 12, "t": 30, "b": 44},
        showlegend=False,
        bargap=0,
        dragmode="pan",
        shapes=shapes,
        annotations=notes,
        xaxis={
            "range": [low, 1.0],
            "title": {"text": escape(unit)},
            "tickvals": ticks,
            "ticktext": ["1" if n == 1 else f"{n:g}".replace("-", "−") for n in ticks],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "tickangle": 0,
            "ticks": "outside",
        },
        yaxis={"title": {"text": "tokens"}, "fixedrange": True, "rangemode": "tozero"}
        | {"tickformat": "d", "nticks": 5},
    )


def token_error(
    values: np.ndarray,
    tokens: Sequence[str],
    *,
    theme: Theme,
    unit: str = "relative error",
    selected: int | None = None,
) -> go.Figure:
    """Error by token as bars under the text itself; see `token_values`."""
    return token_values(values, tokens, unit=unit, theme=theme, selected=selected)
