"""The headline: how much closer the chosen maps bring the teacher's cache than doing nothing would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.labels import escape, number, widest
from kvviz.figures.theme import Theme


def headline(
    values: Mapping[str, Mapping[str, float]],
    *,
    theme: Theme,
    unit: str = "held-out R²",
    chosen: str | None = None,
    baseline: str = "identity",
    lower: float | None = None,
    upper: float | None = None,
) -> go.Figure:
    """One panel for each part, one bar for each method, the baseline as a dotted line through every panel.

    Args:
        values: part ("K", "V", "Q", or any other name, e.g. "attention KL") → method → value in `unit`; NaN or a missing
            method reads "no value".
        chosen: the method to draw in the part's colour; the others are grey. The baseline is hatched.
        lower, upper: ends of the axis. Bars beyond an end are cut there and say "◂" or "▸" beside their value; by default
            the axis spans the values, but not below −1 (an unfitted map's R² may be −50).

    Hover gives part, method and value. Raises ValueError when there is nothing to draw.
    """
    methods = list(dict.fromkeys(method for row in values.values() for method in row))
    if not methods:
        raise ValueError("no method to compare")
    everything = np.array(
        [v for row in values.values() for v in row.values() if np.isfinite(v)], dtype=np.float64
    )
    least = float(everything.min()) if everything.size else 0.0
    most = float(everything.max()) if everything.size else 1.0
    low = lower if lower is not None else max(min(least, 0.0), -1.0)
    high = upper if upper is not None else max(most, 0.0)
    if high <= low:
        high = low + 1.0
    room = (high - low) * 0.34  # for the written value behind a full bar
    titles = [f"<b>{escape(part)}</b>" for part in values]
    grid = {"rows": 1, "cols": len(values), "shared_yaxes": True, "horizontal_spacing": 0.03}
    draft = Draft(theme, grid | {"subplot_titles": titles})
    lines: list[dict] = []
    for col, (part, row) in enumerate(values.items(), 1):
        color = theme.part(part) if part.lower() in ("k", "v", "q") else theme.student
        numbers = np.array([row.get(method, np.nan) for method in methods], dtype=np.float64)
        cut = np.clip(np.nan_to_num(numbers), low, high)
        draft.add(
            "bar",
            (1, col),
            name=escape(part),
            orientation="h",
            y=list(range(len(methods))),
            x=cut,
            marker={
                "color": [color if method == chosen else theme.baseline for method in methods],
                "pattern": {
                    "shape": ["/" if method == baseline else "" for method in methods],
                    "fgcolor": theme.background,
                    "size": 5,
                    "solidity": 0.25,
                },
                "line": {"width": 0},
            },
            hovertext=[
                f"{escape(part)}, {escape(method)}<br>{escape(unit)}: <b>{number(float(v))}</b>"
                for method, v in zip(methods, numbers, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
        draft.add(
            "scatter",
            (1, col),
            name="written",
            mode="text",
            y=list(range(len(methods))),
            x=np.maximum(cut, 0.0),
            text=[_written(float(v), low, high) for v in numbers],
            textposition="middle right",
            textfont={
                "size": 12,
                "color": [theme.text if method == chosen else theme.muted for method in methods],
            },
            cliponaxis=False,
            hoverinfo="skip",
        )
        base = row.get(baseline, np.nan)
        if np.isfinite(base) and low <= base <= high:
            axis = "" if col == 1 else col
            lines.append(
                {"type": "line", "xref": f"x{axis}", "yref": f"y{axis} domain", "x0": base, "x1": base}
                | {"y0": 0, "y1": 1, "line": {"color": theme.text, "width": 1, "dash": "dot"}}
            )
    left = widest(methods, 12) + 14
    scores: dict[str, Any] = {
        "range": [low - 0.02 * (high - low), high + room],
        "title": {"text": escape(unit), "standoff": 2},
        "nticks": 4,
        "zeroline": True,
        "fixedrange": True,
    }
    names: dict[str, Any] = {
        "range": [len(methods) - 0.5, -0.5],
        "tickmode": "array",
        "tickvals": list(range(len(methods))),
        "ticktext": [f"<b>{escape(m)}</b>" if m == chosen else escape(m) for m in methods],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "tickfont": {"size": 12},
    }
    panels = ["", *(str(n) for n in range(2, len(values) + 1))]
    axes = {f"xaxis{n}": scores for n in panels} | {f"yaxis{n}": names for n in panels}
    return draft.figure(
        axes,
        titles={"font": {"size": 13, "color": theme.text}},
        height=70 + 28 * len(methods) + 20,
        margin={"l": left, "r": 10, "t": 26, "b": 44},
        showlegend=False,
        bargap=0.3,
        hovermode="closest",
        dragmode=False,
        shapes=lines,
    )


def _written(value: float, low: float, high: float) -> str:
    text = number(value)
    if value < low:
        text = f"◂ {text}"
    elif value > high:
        text = f"{text} ▸"
    return f"\u00a0{text}"  # a gap to the end of the bar
