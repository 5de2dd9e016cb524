"""The time warp: which stretch of the teacher's text each stretch of the student's reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.heatmap import color_bar
from kvviz.figures.labels import escape, hover_tokens, label, token_axis, x_ticks, y_ticks
from kvviz.figures.theme import Theme, translucent
from kvviz.figures.tokens import ribbon_hover

# Heights in the upper panel: the student's ribbon at the bottom, the teacher's on top, bands between them.
_STUDENT, _TEACHER = (0.0, 0.22), (0.78, 1.0)
# A teacher token is repeated when at least two student tokens read it with at least half their weight each.
HALF = 0.5


def ribbons(
    teacher_tokens: Sequence[str],
    teacher_ids: Sequence[int],
    student_tokens: Sequence[str],
    student_ids: Sequence[int],
    warp_matrix: np.ndarray,
    stretch: np.ndarray,
    names: Sequence[str],
    *,
    theme: Theme,
    chosen: int | None = None,
) -> go.Figure:
    """Two ribbons of tokens, equally wide, bands between corresponding segments, and the local stretch beneath.

    Args:
        teacher_tokens, teacher_ids: T_t texts and the segment of each (index into `names`; −1 is padding).
        student_tokens, student_ids: the same for the student, T_s each; equal ids correspond.
        warp_matrix: [T_s, T_t], how much of each teacher position a student position reads (rows sum to 1).
        stretch: [T_s], teacher tokens for each student token.
        names: the segments' names. chosen: the segment to frame on both ribbons.

    A thin line joins every student token to the middle of what it reads. Teacher tokens that nobody reads carry a cross,
    those that two or more student tokens read with at least half their weight a diamond. A click on a ribbon carries
    `customdata=["teacher" | "student", position]`. Raises ValueError when the numbers of tokens, ids and rows differ.
    """
    weight = np.asarray(warp_matrix, dtype=np.float64)
    stretch = np.asarray(stretch, dtype=np.float64)
    count_t, count_s = len(teacher_tokens), len(student_tokens)
    if weight.shape != (count_s, count_t) or stretch.shape != (count_s,):
        raise ValueError(
            f"{count_t} teacher and {count_s} student tokens need a warp of shape ({count_s}, {count_t}) and {count_s} "
            f"stretches; got {weight.shape} and {stretch.shape}"
        )
    draft = Draft(
        theme,
        {"rows": 2, "cols": 1, "shared_xaxes": True, "row_heights": [0.72, 0.28], "vertical_spacing": 0.06},
    )
    upper, lower = (1, 1), (2, 1)

    for trace in _bands(teacher_ids, student_ids, names, theme):
        draft.add("scatter", upper, **trace)
    draft.add("scatter", upper, **_threads(weight, theme))
    sides = (
        ("teacher", teacher_tokens, teacher_ids, _TEACHER),
        ("student", student_tokens, student_ids, _STUDENT),
    )
    for side, tokens, ids, (low, high) in sides:
        draft.add("bar", upper, **_ribbon(side, tokens, ids, names, low, high, theme))
    for trace in _reading_marks(weight, teacher_tokens, theme):
        draft.add("scatter", upper, **trace)

    middles = (np.arange(count_s) + 0.5) / max(count_s, 1)
    draft.add(
        "scatter",
        lower,
        name="stretch",
        x=middles,
        y=stretch,
        mode="lines",
        line={"shape": "hvh", "color": theme.student, "width": 1.5},
        fill="tozeroy",
        fillcolor=translucent(theme.student, 0.2),
        text=hover_tokens(student_tokens),
        hovertemplate="student token %{text}<br>stretch: <b>%{y:.2f}</b> teacher tokens for each student token<extra></extra>",
    )
    even = {"type": "line", "xref": "x2 domain", "x0": 0, "x1": 1, "yref": "y2", "y0": 1, "y1": 1} | {
        "line": {"color": theme.muted, "width": 1, "dash": "dot"}
    }
    axis_text = [
        (1.0, "bottom", 4, f"teacher, {count_t} tokens", theme.teacher),
        (0.0, "top", -4, f"student, {count_s} tokens", theme.student),
    ]
    notes = [
        {"x": 0, "xref": "x", "y": y, "yref": "y", "yanchor": anchor, "yshift": shift, "xanchor": "left"}
        | {"text": f"<b>{text}</b>", "showarrow": False, "font": {"size": 12, "color": color}}
        for y, anchor, shift, text, color in axis_text
    ]
    ticks, _ = x_ticks([str(position) for position in range(count_s)], 620)
    most = max(float(np.nanmax(stretch, initial=1.0)), 1.0)
    bare = {"range": [0, 1], "showgrid": False, "zeroline": False, "fixedrange": True}
    axes = {
        "xaxis": bare | {"visible": False},
        "xaxis2": bare
        | ticks
        | {"tickvals": [(n + 0.5) / max(count_s, 1) for n in ticks["tickvals"]]}
        | {"title": {"text": "student token position"}},
        "yaxis": {"visible": False, "range": [-0.12, 1.02], "fixedrange": True},
        "yaxis2": {"title": {"text": "stretch<br>(teacher / student)"}, "range": [0, most * 1.1]}
        | {"nticks": 4, "fixedrange": True},
    }
    return draft.figure(
        axes,
        height=400,
        margin={"l": 54, "r": 12, "t": 30, "b": 44},
        bargap=0,
        barmode="overlay",
        hovermode="closest",
        dragmode="pan",
        showlegend=True,
        # Plotly measures an entry a little short: without a width of its own it touches the next.
        legend={
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1.0,
            "yanchor": "bottom",
            "entrywidth": 150,
        },
        shapes=[
            even,
            *_frames(teacher_ids, _TEACHER, chosen, theme),
            *_frames(student_ids, _STUDENT, chosen, theme),
        ],
        annotations=notes,
    )


def warp_heatmap(
    weight: np.ndarray,
    teacher_tokens: Sequence[str],
    student_tokens: Sequence[str],
    *,
    theme: Theme,
    width: int = 700,
) -> go.Figure:
    """W [T_s, T_t] as a heatmap: student tokens down, teacher tokens across, colour 0 to 1 (share of the weight).

    Raises ValueError when the tokens do not match the shape.
    """
    weight = np.asarray(weight, dtype=np.float32)
    if weight.shape != (len(student_tokens), len(teacher_tokens)):
        raise ValueError(
            f"a warp of shape {weight.shape} for {len(student_tokens)} student, {len(teacher_tokens)} teacher tokens"
        )
    rows, cols = weight.shape
    plot_height = min(max(rows * 12, 200), 560)
    y_axis, left = y_ticks(student_tokens, plot_height)
    x_axis, below = x_ticks(teacher_tokens, width - left - 130)
    draft = Draft(theme)
    draft.add(
        "heatmap",
        name="W",
        z=weight,
        zmin=0,
        zmax=1,
        colorscale=[list(stop) for stop in theme.sequential],
        colorbar=color_bar("weight W (0 to 1)", theme),
        hovertemplate="student token %{y}<br>teacher token %{x}<br>weight: <b>%{z:.3f}</b><extra></extra>",
    )
    bare = {"showgrid": False, "zeroline": False}
    return draft.figure(
        height=plot_height + below + 40,
        margin={"l": left + 26, "r": 92, "t": 8, "b": below + 32},
        dragmode="pan",
        xaxis=dict(
            range=[-0.5, cols - 0.5],
            title={"text": "teacher token"},
            **token_axis(x_axis, teacher_tokens),
            **bare,
        ),
        yaxis=dict(
            range=[rows - 0.5, -0.5],
            title={"text": "student token"},
            **token_axis(y_axis, student_tokens),
            **bare,
        ),
    )


def _runs(ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """(id, first position, position after the last) of every maximal run of equal ids, padding left out."""
    runs, position = [], 0
    for segment, members in groupby(int(i) for i in ids):
        length = len(list(members))
        if segment >= 0:
            runs.append((segment, position, position + length))
        position += length
    return runs


def _frames(ids: Sequence[int], height: tuple[float, float], chosen: int | None, theme: Theme) -> list[dict]:
    """A frame round every run of the chosen segment on one ribbon."""
    count = max(len(ids), 1)
    return [
        {"type": "rect", "xref": "x", "yref": "y", "x0": start / count, "x1": end / count}
        | {"y0": height[0], "y1": height[1], "line": {"color": theme.accent, "width": 2}}
        for segment, start, end in _runs(ids)
        if segment == chosen
    ]


def _bands(teacher_ids: Sequence[int], student_ids: Sequence[int], names: Sequence[str], theme: Theme):
    """A filled band for each pair of corresponding runs: one to one where an id has as many on both sides, else all."""
    runs_t, runs_s = _runs(teacher_ids), _runs(student_ids)
    count_t, count_s = max(len(teacher_ids), 1), max(len(student_ids), 1)
    for segment in sorted({run[0] for run in runs_t} & {run[0] for run in runs_s}):
        here_t = [run[1:] for run in runs_t if run[0] == segment]
        here_s = [run[1:] for run in runs_s if run[0] == segment]
        if len(here_t) != len(here_s):
            here_t, here_s = [(here_t[0][0], here_t[-1][1])], [(here_s[0][0], here_s[-1][1])]
        x: list[float | None] = []
        y: list[float | None] = []
        for (start_t, end_t), (start_s, end_s) in zip(here_t, here_s, strict=True):
            x += [
                start_t / count_t,
                end_t / count_t,
                end_s / count_s,
                start_s / count_s,
                start_t / count_t,
                None,
            ]
            y += [_TEACHER[0], _TEACHER[0], _STUDENT[1], _STUDENT[1], _TEACHER[0], None]
        length_t = sum(end - start for start, end in here_t)
        length_s = sum(end - start for start, end in here_s)
        name = label(names[segment], 40) if segment < len(names) else f"segment {segment}"
        yield {
            "name": name,
            "x": x[:-1],
            "y": y[:-1],
            "mode": "lines",
            "line": {"width": 0},
            "fill": "toself",
            "fillcolor": translucent(theme.segment(segment), 0.35),
            "hoveron": "fills",
            "text": f"{name}: {length_t} teacher → {length_s} student tokens",
            "hoverinfo": "text",
            "showlegend": False,
        }


def _threads(weight: np.ndarray, theme: Theme) -> dict:
    """One thin line for each student token that reads something, to the weighted middle of what it reads."""
    count_s, count_t = weight.shape
    total = weight.sum(axis=1)
    reads = np.flatnonzero(total > 0)
    middles = (weight[reads] @ (np.arange(count_t) + 0.5)) / total[reads] / max(count_t, 1)
    gap = np.full(len(reads), np.nan)
    return {
        "name": "reads",
        "x": np.stack([middles, (reads + 0.5) / max(count_s, 1), gap], axis=1).ravel(),
        "y": np.stack(
            [np.full(len(reads), _TEACHER[0]), np.full(len(reads), _STUDENT[1]), gap], axis=1
        ).ravel(),
        "mode": "lines",
        "line": {"color": translucent(theme.text, 0.28), "width": 0.8},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _ribbon(side, tokens, ids, names, low: float, high: float, theme: Theme) -> dict:
    count = len(tokens)
    return {
        "name": side,
        "x": (np.arange(count) + 0.5) / max(count, 1),
        "y": np.full(count, high - low),
        "base": low,
        "width": 1 / max(count, 1),
        "marker": {
            "color": [theme.segment(int(segment)) for segment in ids],
            "line": {"color": theme.background, "width": 0.8 if count <= 300 else 0},
        },
        "customdata": [[side, position] for position in range(count)],
        "hovertext": [f"{side} {line}" for line in ribbon_hover(tokens, ids, names)],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "showlegend": False,
    }


def _reading_marks(weight: np.ndarray, teacher_tokens: Sequence[str], theme: Theme):
    """Crosses on teacher tokens that nobody reads, diamonds on those read more than once."""
    count_t = weight.shape[1]
    lines = hover_tokens(teacher_tokens)
    marks = (
        ("not read", weight.sum(axis=0) == 0, "x", theme.bad),
        ("read more than once", (weight >= HALF).sum(axis=0) >= 2, "diamond", theme.text),
    )
    for name, which, symbol, color in marks:
        positions = np.flatnonzero(which)
        if len(positions):
            yield {
                "name": f"{name} ({len(positions)})",
                "x": (positions + 0.5) / count_t,
                "y": np.full(len(positions), _TEACHER[0] - 0.035),
                "mode": "markers",
                "marker": {"symbol": symbol, "size": 6, "color": color},
                "text": [f"teacher token {lines[position]}<br>{escape(name)}" for position in positions],
                "hovertemplate": "%{text}<extra></extra>",
            }
