"""The layer map and what it costs at every student layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.heatmap import PAGE_WIDTH, cells
from kvviz.figures.labels import escape, number, x_ticks
from kvviz.figures.theme import Theme


def layer_map(
    matrix: np.ndarray,
    *,
    theme: Theme,
    selected: tuple[int, int] | None = None,
    unmapped: Sequence[int] = (),
    overloaded: Sequence[int] = (),
    highlight_rows: Sequence[int] = (),
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """M [L_s, L_t]: student layers down, teacher layers across, colour the weight from 0; rows sum to 1.

    Teacher layers in `unmapped` are marked "∅" above their column, those in `overloaded` "▲"; their hover says which.
    Clicks as in `cells`: [student layer, teacher layer].
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    loads = matrix.sum(axis=0) if matrix.ndim == 2 else np.zeros(0)
    unread, heavy = set(unmapped), set(overloaded)

    def note(layer: int) -> str:
        state = "no student layer reads it" if layer in unread else "overloaded" if layer in heavy else ""
        return f"column sum {number(float(loads[layer]))}" + (f" ({state})" if state else "")

    figure = cells(
        matrix,
        row_title="student layer",
        col_title="teacher layer",
        unit="weight (row sums to 1)",
        theme=theme,
        selected=selected,
        clip=False,
        highlight_rows=highlight_rows,
        col_brackets=[(n, n, "∅") for n in sorted(unread)] + [(n, n, "▲") for n in sorted(heavy)],
        hover=[[note(col) for col in range(len(loads))]] * len(matrix) if matrix.ndim == 2 else None,
        width=width,
    )
    return figure


def per_layer_error(
    errors: Mapping[str, np.ndarray],
    baseline: Mapping[str, np.ndarray] | None = None,
    *,
    theme: Theme,
    unit: str = "relative error",
    baseline_name: str = "identity",
    selected: int | None = None,
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """Grouped bars of an error at every student layer, the baseline as a tick over each bar.

    Args:
        errors: part ("K", "V", "Q") → [L_s] in `unit`. baseline: the same for the baseline's ticks.
        selected: a student layer to frame.

    A click on a bar carries `customdata=[layer]`. Raises ValueError when the arrays differ in length or are empty.
    """
    lengths = {len(series) for group in (errors, baseline or {}) for series in group.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"every series needs one value for each student layer, got lengths {sorted(lengths)}"
        )
    count = lengths.pop()
    bar = 0.8 / len(errors)
    draft = Draft(theme)
    for index, (part, series) in enumerate(errors.items()):
        values = np.asarray(series, dtype=np.float64)
        middle = np.arange(count) + (index - (len(errors) - 1) / 2) * bar
        draft.add(
            "bar",
            name=escape(part),
            x=middle,
            y=values,
            width=bar * 0.92,
            marker={"color": theme.part(part)},
            customdata=[[layer] for layer in range(count)],
            hovertext=[
                f"student layer <b>{layer}</b>, {escape(part)}<br>{escape(unit)}: <b>{number(float(value))}</b>"
                for layer, value in enumerate(values)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
        if baseline is not None and part in baseline:
            base = np.asarray(baseline[part], dtype=np.float64)
            # A tick as a line a bar wide: a marker has a size in pixels and would not fit bars of every width.
            gap = np.full(count, np.nan)
            draft.add(
                "scatter",
                name=escape(baseline_name),
                x=np.stack([middle - bar * 0.46, middle, middle + bar * 0.46, gap], axis=1).ravel(),
                y=np.stack([base, base, base, gap], axis=1).ravel(),
                mode="lines",
                line={"color": theme.text, "width": 2},
                text=[
                    f"student layer <b>{layer}</b>, {escape(part)}, {escape(baseline_name)}<br>"
                    f"{escape(unit)}: <b>{number(float(value))}</b>"
                    for layer, value in enumerate(base)
                    for _ in range(4)
                ],
                hovertemplate="%{text}<extra></extra>",
                legendgroup="baseline",
                legendrank=2000,
                showlegend=index == 0,
            )
    frames = []
    if selected is not None and 0 <= selected < count:
        frames.append(
            {"type": "rect", "x0": selected - 0.47, "x1": selected + 0.47, "y0": 0, "y1": 1, "yref": "paper"}
            | {"line": {"color": theme.accent, "width": 2}}
        )
    ticks, below = x_ticks([str(layer) for layer in range(count)], width - 70)
    return draft.figure(
        height=270,
        margin={"l": 54, "r": 12, "t": 30, "b": below + 28},
        hovermode="closest",
        dragmode="pan",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
        shapes=frames,
        xaxis=dict(
            range=[-0.6, count - 0.4],
            title={"text": "student layer"},
            showgrid=False,
            zeroline=False,
            fixedrange=True,
            **ticks,
        ),
        yaxis={"title": {"text": escape(unit)}, "rangemode": "tozero", "fixedrange": True},
    )
