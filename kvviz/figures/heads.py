"""The head mixers and the dim projections: who feeds whom, how many really do, and how much of a basis is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.heatmap import PAGE_WIDTH, Bracket, cells
from kvviz.figures.labels import escape, number, x_ticks
from kvviz.figures.theme import Theme


def gqa_brackets(heads: int, kv_heads: int) -> list[Bracket]:
    """(first, last, "KV j") for the query heads that share each KV head; empty when each has its own.

    Raises ValueError when `heads` is not a multiple of `kv_heads`.
    """
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    size = heads // kv_heads
    return [(n * size, (n + 1) * size - 1, f"KV {n}") for n in range(kv_heads)] if size > 1 else []


def mixer(
    weights: np.ndarray,
    *,
    theme: Theme,
    part: str = "k",
    selected: tuple[int, int] | None = None,
    student_brackets: Sequence[Bracket] = (),
    teacher_brackets: Sequence[Bracket] = (),
    highlight_rows: Sequence[int] = (),
    highlight_cols: Sequence[int] = (),
    width: int = PAGE_WIDTH,
    height: int | None = None,
) -> go.Figure:
    """A head mixer A [H_s, H_t] of `part` ("q", "k" or "v"): student heads down, teacher heads across, signed weights.

    Brackets as from `gqa_brackets`. Clicks as in `cells`: [student head, teacher head].
    """
    kind = "query head" if part.lower() == "q" else "KV head"
    return cells(
        weights,
        row_title=f"student {kind}",
        col_title=f"teacher {kind}",
        unit="mixing weight",
        theme=theme,
        scale="diverging",
        selected=selected,
        row_brackets=student_brackets,
        col_brackets=teacher_brackets,
        highlight_rows=highlight_rows,
        highlight_cols=highlight_cols,
        width=width,
        height=height,
    )


def head_bars(
    values: np.ndarray,
    *,
    unit: str,
    theme: Theme,
    color: str | None = None,
    reference: float | None = None,
    reference_name: str = "",
    dead: Sequence[int] = (),
    head_title: str = "student head",
    selected: int | None = None,
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """One bar a head: values [H] in `unit`, a dotted line at `reference`, dead heads named in red.

    A click carries `customdata=[head]`. Raises ValueError when `values` is not one-dimensional or empty.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected one value for each head, got shape {values.shape}")
    gone = set(dead)
    color = color or theme.student
    draft = Draft(theme)
    draft.add(
        "bar",
        name=escape(unit),
        x=list(range(len(values))),
        y=values,
        marker={
            "color": [theme.bad if head in gone else color for head in range(len(values))],
            "line": {
                "color": theme.accent,
                "width": [3 if head == selected else 0 for head in range(len(values))],
            },
        },
        customdata=[[head] for head in range(len(values))],
        hovertext=[
            f"{escape(head_title)} <b>{head}</b><br>{escape(unit)}: <b>{number(float(value))}</b>"
            + ("<br>dead: reads almost nothing" if head in gone else "")
            for head, value in enumerate(values)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    notes = [
        {"x": head, "y": max(float(np.nan_to_num(values[head])), 0.0), "text": "dead", "showarrow": False}
        | {"yanchor": "bottom", "yshift": 1, "font": {"size": 11, "color": theme.bad}}
        for head in sorted(gone)
        if 0 <= head < len(values)
    ]
    lines = []
    if reference is not None:
        lines.append(
            {
                "type": "line",
                "xref": "x domain",
                "x0": 0,
                "x1": 1,
                "yref": "y",
                "y0": reference,
                "y1": reference,
            }
            | {"line": {"color": theme.muted, "width": 1.5, "dash": "dot"}}
        )
        if reference_name:
            notes.append(
                {
                    "x": 1,
                    "xref": "paper",
                    "xanchor": "right",
                    "y": reference,
                    "yanchor": "bottom",
                    "showarrow": False,
                }
                | {"text": escape(reference_name), "font": {"size": 11, "color": theme.muted}}
            )
    ticks, below = x_ticks([str(head) for head in range(len(values))], width - 70)
    return draft.figure(
        height=200,
        margin={"l": 54, "r": 12, "t": 18, "b": below + 28},
        bargap=0.3,
        showlegend=False,
        hovermode="closest",
        dragmode="pan",
        shapes=lines,
        annotations=notes,
        xaxis=dict(
            range=[-0.5, len(values) - 0.5],
            title={"text": escape(head_title)},
            showgrid=False,
            zeroline=False,
            fixedrange=True,
            **ticks,
        ),
        yaxis={"title": {"text": escape(unit)}, "rangemode": "tozero", "fixedrange": True, "nticks": 5},
    )


def row_sums(sums: np.ndarray, *, theme: Theme, dead: Sequence[int] = (), **options) -> go.Figure:
    """Sum of each student head's mixing weights [H_s]; the uniform start sums to 1. `options` as in `head_bars`."""
    return head_bars(
        sums, unit="row sum of weights", theme=theme, reference=1.0, reference_name="1", dead=dead, **options
    )


def effective_heads(
    counts: np.ndarray, teacher_heads: int, *, theme: Theme, dead: Sequence[int] = (), **options
) -> go.Figure:
    """How many teacher heads each student head really reads [H_s]: exp of the entropy of its normalised |weights|.

    Between 1 (one head) and `teacher_heads` (all alike). `options` as in `head_bars`.
    """
    return head_bars(
        counts,
        unit="effective teacher heads",
        theme=theme,
        reference=float(teacher_heads),
        reference_name=f"all {teacher_heads}",
        dead=dead,
        **options,
    )


def singular_values(series: Mapping[str, np.ndarray], *, theme: Theme) -> go.Figure:
    """Singular values of dim projections, largest first, on a logarithmic axis. A steep fall: few directions carry over.

    `series` maps a name ("K", "V", "Q" take their colours; any other name works) to its singular values [n], each > 0
    (zeros cannot be drawn on this axis and are left out; the hover of the last one says how many).
    """
    draft = Draft(theme)
    for index, (name, values) in enumerate(series.items()):
        values = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        positive = values[values > 0]
        left_out = len(values) - len(positive)
        color = theme.part(name) if name.lower() in ("k", "v", "q") else theme.segment(index)
        hovers = [
            f"{escape(name)}, singular value {n}<br><b>{number(float(v))}</b>"
            for n, v in enumerate(positive, 1)
        ]
        if left_out and hovers:
            hovers[-1] += f"<br>{left_out} more are zero"
        draft.add(
            "scatter",
            name=escape(name),
            x=list(range(1, len(positive) + 1)),
            y=positive,
            mode="lines+markers" if len(positive) <= 64 else "lines",
            line={"color": color, "width": 2},
            marker={"size": 5, "color": color},
            text=hovers,
            hovertemplate="%{text}<extra></extra>",
        )
    return draft.figure(
        height=260,
        margin={"l": 60, "r": 12, "t": 28, "b": 46},
        hovermode="closest",
        dragmode="pan",
        showlegend=True,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
        xaxis={
            "title": {"text": "index, largest first"},
            "showgrid": False,
            "fixedrange": True,
            "tickformat": "d",
        },
        yaxis={"title": {"text": "singular value (log)"}, "type": "log", "fixedrange": True}
        | {"exponentformat": "power", "dtick": 1},
    )
