"""The alignment as a picture: what shape Q, K and V have after every stage, and which axis the stage changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.labels import escape
from kvviz.figures.theme import Theme, blend

Shape = tuple[int, int, int, int]
AXES = ("layers", "heads", "tokens", "dims")


@dataclass(frozen=True)
class Stage:
    """One column of the picture.

    `shapes` maps "k", "v" and "q" to (layers, heads, tokens, dims); the batch axis is left out. `detail` is one short
    line under the name (plain text). `side` colours it: the teacher's own, a step of the alignment, the student's own.
    """

    name: str
    shapes: Mapping[str, Shape]
    detail: str = ""
    side: Literal["teacher", "step", "student"] = "step"


def pipeline(stages: Sequence[Stage], *, theme: Theme, parts: Sequence[str] = ("q", "k", "v")) -> go.Figure:
    """Boxes for each stage (columns) and part (rows), with arrows between them and changed axes in bold.

    Args:
        stages: in order; the last one is usually the student's own cache, which the aligned shape must equal: a stage of
            side "student" after a step is joined by "=" or, where the shapes differ, by a red "≠".
        parts: the rows, from "q", "k", "v"; each must be in every stage's shapes (KeyError otherwise).

    Readable at 700 px with up to six stages. Hover on a box gives its shape in full. Raises ValueError without stages.
    """
    if not stages:
        raise ValueError("a pipeline needs at least one stage")
    draft = Draft(theme)
    shapes: list[dict] = []
    texts: list[dict] = []
    colors = {"teacher": theme.teacher, "student": theme.student, "step": theme.muted}
    half_width, half_height, rows = 0.41, 0.38, len(parts)

    for column, stage in enumerate(stages):
        heading = f"<b>{escape(stage.name)}</b>"
        detail = (
            f"<br><span style='font-size:10px'>{escape(stage.detail)}</span>" if stage.detail else "<br> "
        )
        color = theme.text if stage.side == "step" else colors[stage.side]
        texts.append(
            _text(column, -0.5, heading + detail, 12, color)
            | {"yanchor": "bottom", "yshift": 2, "align": "center"}
        )
        before = stages[column - 1] if column else None
        for row, part in enumerate(parts):
            shape = stage.shapes[part]
            changed = [before is not None and shape[i] != before.shapes[part][i] for i in range(4)]
            own = stage.side == "student" and before is not None
            edge = colors[stage.side]
            if own and before is not None and any(changed):
                edge = theme.bad
            shapes.append(
                {
                    "type": "rect",
                    "x0": column - half_width,
                    "x1": column + half_width,
                    "y0": row - half_height,
                    "y1": row + half_height,
                    "line": {"color": edge, "width": 1.5},
                    "fillcolor": blend(edge, theme.background, 0.12),
                    "layer": "below",
                }
            )
            marked = [False] * 4 if own else changed
            texts.append(_text(column, row, _lines(shape, marked, theme), 11, theme.text))
            if before is not None:
                same = not any(changed)
                sign, color = (
                    ("→", theme.muted) if not own else ("=", theme.good) if same else ("≠", theme.bad)
                )
                texts.append(_text(column - 0.5, row, sign, 15, color))
    for row, part in enumerate(parts):
        texts.append(_text(-0.5, row, f"<b>{part.upper()}</b>", 13, theme.part(part)) | {"xshift": -4})

    draft.add(
        "scatter",
        name="stages",
        x=[column for column in range(len(stages)) for _ in parts],
        y=[row for _ in stages for row in range(rows)],
        mode="markers",
        marker={"size": 30, "opacity": 0},
        text=[_hover(stage, part) for stage in stages for part in parts],
        hovertemplate="%{text}<extra></extra>",
    )
    hidden = {"visible": False, "fixedrange": True}
    return draft.figure(
        height=58 + 64 * rows,
        margin={"l": 16, "r": 4, "t": 44, "b": 6},
        showlegend=False,
        shapes=shapes,
        annotations=texts,
        hovermode="closest",
        hoverdistance=60,
        dragmode=False,
        xaxis=dict(range=[-0.56, len(stages) - 0.56 + 0.02], **hidden),
        yaxis=dict(range=[rows - 0.5, -0.5], **hidden),
    )


def _text(x: float, y: float, text: str, size: int, color: str) -> dict:
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": size, "color": color}}


def _lines(shape: Shape, changed: Sequence[bool], theme: Theme) -> str:
    """Three short lines that fit a box of 100 pixels; changed numbers bold and in the accent colour."""
    written = [
        f"<b style='color:{theme.accent}'>{size:,}</b>" if mark else f"{size:,}"
        for size, mark in zip(shape, changed, strict=True)
    ]
    layers, heads, tokens, dims = written
    return f"{layers} layers<br>{heads} heads × {dims}<br>{tokens} tokens"


def _hover(stage: Stage, part: str) -> str:
    sizes = " × ".join(f"{size:,} {axis}" for size, axis in zip(stage.shapes[part], AXES, strict=True))
    values = 1
    for size in stage.shapes[part]:
        values *= size
    return f"<b>{escape(stage.name)}</b>, {part.upper()}<br>{sizes}<br>{values:,} values a sample"
