"""Attention of a head three times over: the teacher's, the teacher's after alignment, the student's own.

Attention is peaked: on a linear scale most of a map looks empty. The colour scale may be bent (square root, four decades of
a logarithm) while values, colour bar and hover stay true.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.canvas import DECADES, Bend, CanvasPanel, quantise
from kvviz.figures.draft import Draft
from kvviz.figures.heatmap import PAGE_WIDTH, Bracket, cells, color_bar
from kvviz.figures.labels import hover_tokens, number, token_axis, x_ticks, y_ticks
from kvviz.figures.theme import Theme
from kvviz.figures.tokens import token_values

LARGEST = 256
BEND_NAMES = {"linear": "", "sqrt": ", √ colours", "log": ", log colours"}


def needs_canvas(*maps: np.ndarray) -> bool:
    """Whether any of these maps has more than 256 rows or columns: then draw it with the app's canvas component.

    As plotly figures, maps of that size take seconds to redraw.
    """
    return any(max(np.shape(attention), default=0) > LARGEST for attention in maps)


def bent_scale(theme: Theme, bend: Bend) -> list[list]:
    """The sequential colour scale with its stops moved, so that colour follows √value or log value, not the value."""
    fractions = np.linspace(0, 1, 33)
    if bend == "sqrt":
        places = fractions**2
    elif bend == "log":
        places = 10.0 ** (-DECADES * (1 - fractions))
        places[0] = 0.0
    else:
        return [list(stop) for stop in theme.sequential]
    return [[float(place), theme.color_at(float(f))] for place, f in zip(places, fractions, strict=True)]


def attention_panels(
    teacher: np.ndarray,
    aligned: np.ndarray,
    student: np.ndarray,
    teacher_tokens: Sequence[str],
    student_tokens: Sequence[str],
    *,
    bend: Bend = "sqrt",
) -> tuple[list[CanvasPanel], float]:
    """The three maps of `attention_maps` for the canvas component, and the probability at the top of their one scale."""
    top = _top(teacher, aligned, student)
    panels = [
        ("teacher", teacher, teacher_tokens),
        ("teacher, aligned", aligned, student_tokens),
        ("student", student, student_tokens),
    ]
    return [CanvasPanel(name, quantise(a, 0.0, top, bend), tokens, tokens) for name, a, tokens in panels], top


def _top(*maps: np.ndarray) -> float:
    """The largest finite entry of all maps, 1 where there is none above zero."""
    largest = [float(np.max(a, where=np.isfinite(a), initial=0.0)) for a in maps]
    return max(largest, default=0.0) or 1.0


def kl_map(
    values: np.ndarray,
    *,
    theme: Theme,
    selected: tuple[int, int] | None = None,
    baseline: np.ndarray | None = None,
    col_brackets: Sequence[Bracket] = (),
    highlight_rows: Sequence[int] = (),
    highlight_cols: Sequence[int] = (),
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """KL(teacher ‖ student) of every student layer (rows) and query head (columns) in nats: values [L_s, Hq_s].

    `baseline`: the same under the identity map, told in the hover. Clicks as in `cells`: [layer, head].
    """
    hover = None
    if baseline is not None:
        hover = [
            [f"identity: {value:.3g} nats" for value in line]
            for line in np.asarray(baseline, dtype=np.float64)
        ]
    return cells(
        values,
        row_title="student layer",
        col_title="student query head",
        unit="attention KL (nats)",
        theme=theme,
        hover=hover,
        selected=selected,
        col_brackets=col_brackets,
        highlight_rows=highlight_rows,
        highlight_cols=highlight_cols,
        width=width,
    )


def attention_maps(
    teacher: np.ndarray,
    aligned: np.ndarray,
    student: np.ndarray,
    teacher_tokens: Sequence[str],
    student_tokens: Sequence[str],
    row_kl: np.ndarray,
    *,
    theme: Theme,
    bend: Bend = "sqrt",
    wide: bool = False,
    selected: int | None = None,
    width: int = PAGE_WIDTH,
) -> go.Figure:
    """The teacher's map, the aligned teacher's, the student's, and the KL of each row beside the student's rows.

    Args:
        teacher: [T_t, T_t]; aligned, student: [T_s, T_s]; rows are queries and sum to 1, NaN where the
            mask forbids a key. One colour scale for all three.
        teacher_tokens: T_t texts; student_tokens: T_s texts.
        row_kl: [T_s] in nats, NaN for rows without a value.
        bend: how colours follow values; the colour bar says so.
        wide: all four in a row (for pages of 1,100 pixels and more), else two by two.
        selected: a student position whose row is framed.

    A click on a KL bar carries `customdata=[position]`, one on a map `pointNumber=[query, key]`. Raises ValueError when shapes do not match the tokens, or when a map
    is larger than `needs_canvas` allows.
    """
    teacher, aligned, student = (np.asarray(a, dtype=np.float32) for a in (teacher, aligned, student))
    row_kl = np.asarray(row_kl, dtype=np.float64)
    count_t, count_s = len(teacher_tokens), len(student_tokens)
    found = (teacher.shape, aligned.shape, student.shape, row_kl.shape)
    if found != ((count_t, count_t), (count_s, count_s), (count_s, count_s), (count_s,)):
        raise ValueError(f"{count_t} teacher and {count_s} student tokens do not fit shapes {found}")
    if needs_canvas(teacher, student):
        raise ValueError(
            f"maps of {count_t} and {count_s} tokens are too large for plotly: use the canvas component"
        )
    top = _top(teacher, aligned, student)

    panels = [
        ("teacher", teacher, teacher_tokens, "teacher"),
        ("teacher, aligned", aligned, student_tokens, "student"),
        ("student", student, student_tokens, "student"),
    ]
    titles = [name for name, *_ in panels] + ["KL of each row"]
    places = [(1, 1), (1, 2), (1, 3), (1, 4)] if wide else [(1, 1), (1, 2), (2, 1), (2, 2)]
    panel_width = (width - 110) / (4 if wide else 2) - 70
    panel_height = 330 if wide else 300
    names_room = max(
        x_ticks(names, panel_width, limit=10)[1] for names in (teacher_tokens, student_tokens)
    )  # fmt: skip
    side_room = max(y_ticks(names, panel_height, limit=10)[1] for names in (teacher_tokens, student_tokens))
    rows = 1 if wide else 2
    height = rows * panel_height + (rows - 1) * (names_room + 66) + names_room + 30 + 26
    grid = {
        "rows": rows,
        "cols": 4 if wide else 2,
        "subplot_titles": titles,
        "horizontal_spacing": (side_room + 34) / (width - 110 - side_room),
        "vertical_spacing": 0 if wide else (names_room + 66) / (height - names_room - 56),
        "column_widths": [0.3, 0.3, 0.3, 0.1] if wide else [0.5, 0.5],
    }
    draft = Draft(theme, grid)
    axes: dict[str, dict] = {}
    for index, ((name, panel, names, side), place) in enumerate(zip(panels, places, strict=False)):
        draft.add(
            "heatmap",
            place,
            name=name,
            z=panel,
            coloraxis="coloraxis",
            hovertemplate=f"{name}<br>query %{{y}}<br>key %{{x}}<br>attention: <b>%{{z:.4f}}</b><extra></extra>",
        )
        ticks_x, _ = x_ticks(names, panel_width, limit=10)
        ticks_y, _ = y_ticks(names, panel_height, limit=10)
        bare = {"showgrid": False, "zeroline": False}
        count = len(names)
        number = "" if index == 0 else f"{index + 1}"
        axes[f"xaxis{number}"] = dict(
            range=[-0.5, count - 0.5],
            title={"text": f"key ({side} token)", "standoff": 2},
            **token_axis(ticks_x, names),
            **bare,
        )
        axes[f"yaxis{number}"] = dict(
            range=[count - 0.5, -0.5],
            title={"text": f"query ({side} token)", "standoff": 8},
            **token_axis(ticks_y, names),
            **bare,
        )
    axes |= _add_row_bars(draft, places[3], row_kl, student_tokens, theme, panel_height)
    shapes = []
    if selected is not None and 0 <= selected < count_s:
        shapes = [
            {"type": "rect", "xref": f"x{n} domain", "yref": f"y{n}", "x0": 0, "x1": 1}
            | {"y0": selected - 0.5, "y1": selected + 0.5, "line": {"color": theme.accent, "width": 2}}
            for n in (2, 3, 4)
        ]
    return draft.figure(
        axes,
        height=height,
        margin={"l": side_room + 34, "r": 84, "t": 26, "b": names_room + 30},
        coloraxis={
            "cmin": 0,
            "cmax": top,
            "colorscale": bent_scale(theme, bend),
            "colorbar": color_bar(f"attention probability{BEND_NAMES[bend]}", theme),
        },
        showlegend=False,
        hovermode="closest",
        dragmode="pan",
        shapes=shapes,
        bargap=0.1,
    )


def row_kl(
    values: np.ndarray, tokens: Sequence[str], *, theme: Theme, selected: int | None = None
) -> go.Figure:
    """KL of each query row [T] in nats as bars under the text; see `token_values`."""
    return token_values(values, tokens, unit="KL of the row (nats)", theme=theme, selected=selected)


def _add_row_bars(
    draft: Draft,
    place: tuple[int, int],
    values: np.ndarray,
    tokens: Sequence[str],
    theme: Theme,
    room: float,
) -> dict[str, dict]:
    """The fourth panel; returns what its axes get."""
    finite = values[np.isfinite(values)]
    top = max(float(finite.max()), 1e-12) if finite.size else 1.0
    lines = hover_tokens(tokens)
    draft.add(
        "bar",
        place,
        name="KL of each row",
        orientation="h",
        y=list(range(len(values))),
        x=np.where(np.isfinite(values), values, 0.0),
        marker={"color": theme.accent, "line": {"width": 0}},
        customdata=[[position] for position in range(len(values))],
        hovertext=[
            f"query {lines[position]}<br>KL: <b>{number(float(value))}</b> nats"
            for position, value in enumerate(values)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    ticks, _ = y_ticks(tokens, room, limit=10)
    title = {"text": "KL (nats)", "standoff": 2}
    return {
        "xaxis4": {"title": title, "range": [0, top * 1.05], "nticks": 4, "tickangle": 0},
        "yaxis4": {"range": [len(values) - 0.5, -0.5], "showgrid": False, "zeroline": False} | ticks,
    }
