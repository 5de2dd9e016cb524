"""One heatmap for every grid of cells: layers × heads, layers × layers, heads × heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.labels import escape, label, number, pixels, x_ticks, y_ticks
from kvviz.figures.theme import CLEAR, Theme, readable_on

Scale = Literal["sequential", "diverging", "unit"]
Bracket = tuple[int, int, str]

PAGE_WIDTH = 700
# A cross is an SVG element of its own: more of them make a page slow. The pale patches remain.
MOST_CROSSED = 4096
# Below a hundred values the 99th percentile is only a share of the largest.
FEWEST_TO_CLIP = 100


@dataclass(frozen=True)
class Limits:
    """What the colours of a figure span: `low` and `high` in the values' unit, and whether values beyond were clipped."""

    low: float
    high: float
    clipped: bool

    def title(self, unit: str) -> str:
        """The colour bar's title: the (escaped) unit, and where the colours stop if values lie beyond."""
        return escape(unit) + (f", clipped at p99 = {number(self.high)}" if self.clipped else "")


def limits(
    values: np.ndarray, scale: Scale = "sequential", *, center: float = 0.0, clip: bool = True
) -> Limits:
    """Colour limits for `values` (any shape; NaN and infinities are left out).

    sequential: from 0 to the largest value; diverging: symmetric about `center`; unit: 0 to 1, whatever the values are.
    With `clip`, the far end is the 99th percentile of the values (diverging: of their distances from the centre), if there
    are at least 100 of them.
    """
    if scale == "unit":
        return Limits(0.0, 1.0, False)
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    reach = np.abs(finite - center) if scale == "diverging" else finite
    most = max(float(reach.max()), 0.0) if reach.size else 0.0
    top = float(np.percentile(reach, 99)) if clip and reach.size >= FEWEST_TO_CLIP else most
    if top <= 0:
        top = most
    clipped = top < most
    top = top or 1.0
    return Limits(center - top, center + top, clipped) if scale == "diverging" else Limits(0.0, top, clipped)


def colors(scale: Scale, theme: Theme) -> tuple[tuple[float, str], ...]:
    """The colour scale for a kind of value. On "unit" (1 is best) the colours run backwards: strong colour is a bad value."""
    return {
        "sequential": theme.sequential,
        "diverging": theme.diverging,
        "unit": theme.reversed_sequential(),
    }[scale]


# Unseen, but with a width: plotly trims blanks.
BLANKS = f'<span style="color:{CLEAR}">----</span>'


def color_bar(title: str, theme: Theme, **changes) -> dict:
    """Keyword arguments of a colour bar as high as the plot, its title (plotly text) running up its side."""
    return {
        # Plotly moves the title clear of the tick labels it lies beside; those at its ends count, too.
        "title": {
            "text": f"{BLANKS}{title}{BLANKS}",
            "side": "right",
            "font": {"size": 12, "color": theme.text},
        },
        "thickness": 12,
        "len": 1.0,
        "lenmode": "fraction",
        "y": 0.5,
        "ypad": 0,
        "x": 1.0,
        "xpad": 10,
        "outlinewidth": 0,
        "tickfont": {"size": 11, "color": theme.text},
        "nticks": 6,
    } | changes


def cells(
    values: np.ndarray,
    *,
    row_title: str,
    col_title: str,
    unit: str,
    theme: Theme,
    row_names: Sequence[str] | None = None,
    col_names: Sequence[str] | None = None,
    scale: Scale = "sequential",
    center: float = 0.0,
    hover: Sequence[Sequence[str]] | None = None,
    selected: tuple[int, int] | None = None,
    clip: bool = True,
    spanned: np.ndarray | None = None,
    highlight_rows: Sequence[int] = (),
    highlight_cols: Sequence[int] = (),
    row_brackets: Sequence[Bracket] = (),
    col_brackets: Sequence[Bracket] = (),
    show_values: bool | None = None,
    height: int | None = None,
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """A grid of coloured cells, row 0 on top, which says which cell was clicked.

    Args:
        values: [rows, cols] in `unit`. NaN and infinite cells stay empty, with a small cross and "no value" in the hover.
        row_title, col_title, unit: what an axis or the colour means. Plain text, like all names: escaped here.
        row_names, col_names: a name for each row and column, their numbers if left out. Equal names are fine.
        scale: "sequential" from zero, "diverging" about `center`, or "unit": 0 to 1 with 1 best.
        hover: [rows][cols] extra lines (plain text, "\\n" between lines) for the hover of each cell.
        selected: the (row, col) to outline. One outside the grid is not drawn.
        clip: end the colours at the 99th percentile (of 100 or more values); the colour bar then says so.
        spanned: what the colours span in place of `values` (any shape), so that several grids share one scale.
        highlight_rows, highlight_cols: rows and columns to frame, e.g. the sources of a head clicked elsewhere.
        row_brackets, col_brackets: (first, last, text) groups along an axis, e.g. the query heads that share a KV head.
        show_values: write each value into its cell; by default where there is room for it.
        height: pixels of the whole figure, by default by the number of rows. width: the narrowest page (pixels) on which
            labels must not overlap.

    A click on trace "values" carries `pointNumber=[row, col]` (plotly.js's `plotly_click`).
    Raises ValueError when `values` is not two-dimensional or empty, or when names or hover do not match its shape.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected values [rows, cols] with at least one cell, got shape {values.shape}")
    rows, cols = values.shape
    row_names = _names(row_names, rows, "row")
    col_names = _names(col_names, cols, "column")
    if hover is not None and (len(hover) != rows or any(len(line) != cols for line in hover)):
        raise ValueError(f"hover must have one text for each of the {rows} × {cols} cells")

    span = limits(values if spanned is None else spanned, scale, center=center, clip=clip)
    plot_height = max(220 if span.clipped else 140, round(rows * min(max(420 / rows, 17), 44)))
    y_axis, left = y_ticks(row_names, (height - 110) if height else plot_height)
    left += 30
    bracket_width = (
        max((pixels(text, 11) for *_, text in row_brackets), default=0) + 14 if row_brackets else 0
    )
    right = 92 + bracket_width
    x_axis, below = x_ticks(col_names, width - left - right)
    bottom, top = below + 30, 26 if col_brackets else 8
    height = height or plot_height + top + bottom

    shown = np.where(np.isfinite(values), values, np.nan)
    if show_values is None:
        show_values = (width - left - right) / cols >= 40 and (height - top - bottom) / rows >= 17
    draft = Draft(theme)
    draft.add(
        "heatmap",
        name="values",
        z=shown,
        zmin=span.low,
        zmax=span.high,
        colorscale=[list(stop) for stop in colors(scale, theme)],
        colorbar=color_bar(span.title(unit), theme, xpad=10 + bracket_width),
        text=_hovers(values, row_names, col_names, row_title, col_title, unit, hover),
        hovertemplate="%{text}<extra></extra>",
        xgap=1 if cols <= 64 else 0,
        ygap=1 if rows <= 64 else 0,
    )
    if show_values:
        _add_written(draft, values, span, colors(scale, theme), theme)
    _add_missing(draft, shown, theme)

    frames: list[dict] = []
    for row in highlight_rows:
        frames.append(_frame(-0.5, row - 0.5, cols - 0.5, row + 0.5, theme.accent, 1.5))
    for col in highlight_cols:
        frames.append(_frame(col - 0.5, -0.5, col + 0.5, rows - 0.5, theme.accent, 1.5))
    if selected is not None and 0 <= selected[0] < rows and 0 <= selected[1] < cols:
        row, col = selected
        edges = (col - 0.5, row - 0.5, col + 0.5, row + 0.5)
        frames += [_frame(*edges, theme.background, 5), _frame(*edges, theme.accent, 2.5)]
    bracket_shapes, bracket_texts = _brackets(row_brackets, col_brackets, theme)

    bare = {"showgrid": False, "zeroline": False, "fixedrange": True}
    return draft.figure(
        height=height,
        margin={"l": left, "r": right, "t": top, "b": bottom},
        hovermode="closest",
        dragmode="pan",
        showlegend=False,
        shapes=frames + bracket_shapes,
        annotations=bracket_texts,
        xaxis=dict(
            range=[-0.5, cols - 0.5], title={"text": escape(col_title), "standoff": 4}, **x_axis, **bare
        ),
        yaxis=dict(
            range=[rows - 0.5, -0.5], title={"text": escape(row_title), "standoff": 4}, **y_axis, **bare
        ),
    )


def _names(names: Sequence[str] | None, count: int, what: str) -> list[str]:
    if names is None:
        return [str(index) for index in range(count)]
    if len(names) != count:
        raise ValueError(f"{len(names)} {what} names for {count} {what}s")
    return list(names)


def _short(value: float) -> str:
    """A number as it fits into a cell: two decimals, of a large one none, of a huge one its size."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = ".2f" if size < 100 else ".0f" if size < 1e4 else ".1e"
    return f"{value:{digits}}".replace("-", "−")


def _add_written(draft: Draft, values: np.ndarray, span: Limits, stops, theme: Theme) -> None:
    """Each value in its cell, black or white, whichever is easier to read on the cell's colour.

    As two clear heatmaps, one a text colour: a heatmap's text has one colour for all cells.
    """
    finite = np.isfinite(values)
    texts = np.full(values.shape, "", dtype=object)
    inks = np.full(values.shape, "", dtype=object)
    for row, col in np.argwhere(finite):
        value = float(values[row, col])
        texts[row, col] = _short(value)
        inks[row, col] = readable_on(theme.color_at((value - span.low) / (span.high - span.low), stops))
    for ink in sorted(set(inks[finite])):
        draft.add(
            "heatmap",
            name="written",
            z=np.where(inks == ink, 0.0, np.nan),
            text=np.where(inks == ink, texts, ""),  # plotly writes where z is missing, too
            texttemplate="%{text}",
            textfont={"size": 11, "color": ink},
            colorscale=[[0, CLEAR], [1, CLEAR]],
            showscale=False,
            hoverinfo="skip",
        )


def _add_missing(draft: Draft, shown: np.ndarray, theme: Theme) -> None:
    """A pale patch with a cross for every cell without a value, so that none is taken for a zero."""
    missing = np.isnan(shown)
    if not missing.any():
        return
    draft.add(
        "heatmap",
        name="no value",
        z=np.where(missing, 0.0, np.nan),
        colorscale=[[0, theme.missing], [1, theme.missing]],
        showscale=False,
        hoverinfo="skip",
        xgap=1 if shown.shape[1] <= 64 else 0,
        ygap=1 if shown.shape[0] <= 64 else 0,
    )
    if missing.sum() <= MOST_CROSSED:
        rows, cols = np.nonzero(missing)
        draft.add(
            "scatter",
            name="no value",
            x=cols.tolist(),
            y=rows.tolist(),
            mode="markers",
            marker={"symbol": "x-thin", "size": 7, "line": {"width": 1, "color": theme.muted}},
            hoverinfo="skip",
        )


def _hovers(values, row_names, col_names, row_title, col_title, unit, hover) -> list[list[str]]:
    """What each cell says under the pointer, [rows][cols], escaped."""
    row_lines = [f"{escape(row_title)} <b>{label(name, 60)}</b>" for name in row_names]
    col_lines = [f"{escape(col_title)} <b>{label(name, 60)}</b>" for name in col_names]

    def words(row: int, col: int) -> str:
        lines = [row_lines[row], col_lines[col], f"{escape(unit)}: <b>{number(float(values[row, col]))}</b>"]
        if hover is not None and hover[row][col]:
            lines += [escape(line) for line in hover[row][col].split("\n")]
        return "<br>".join(lines)

    return [[words(row, col) for col in range(len(col_names))] for row in range(len(row_names))]


def _frame(x0: float, y0: float, x1: float, y1: float, color: str, line_width: float) -> dict:
    line = {"color": color, "width": line_width}
    return {"type": "rect", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": line, "layer": "above"}


def _brackets(
    rows: Sequence[Bracket], cols: Sequence[Bracket], theme: Theme
) -> tuple[list[dict], list[dict]]:
    """A bar beside each group: above the plot for columns, right of it for rows, a fixed number of pixels away."""
    shapes, texts = [], []
    line = {"color": theme.muted, "width": 2}
    font = {"size": 11, "color": theme.text}
    for first, last, text in cols:
        ends = {"x0": first - 0.38, "x1": last + 0.38, "xref": "x"}
        shapes.append(
            {
                "type": "line",
                "yref": "paper",
                "ysizemode": "pixel",
                "yanchor": 1,
                "y0": 4,
                "y1": 4,
                "line": line,
            }
            | ends
        )
        texts.append(
            {
                "x": (first + last) / 2,
                "xref": "x",
                "y": 1,
                "yref": "paper",
                "yshift": 6,
                "yanchor": "bottom",
                "showarrow": False,
            }
            | {"text": escape(text), "font": font}
        )
    for first, last, text in rows:
        ends = {"y0": first - 0.38, "y1": last + 0.38, "yref": "y"}
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "xsizemode": "pixel",
                "xanchor": 1,
                "x0": 5,
                "x1": 5,
                "line": line,
            }
            | ends
        )
        texts.append(
            {"y": (first + last) / 2, "yref": "y", "x": 1, "xref": "paper", "xshift": 10, "xanchor": "left"}
            | {"showarrow": False, "text": escape(text), "font": font}
        )
    return shapes, texts
