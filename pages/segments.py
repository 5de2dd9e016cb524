"""Segments: where each stretch of the teacher's text went in the student's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st
from torch import Tensor

from app import segment_panel, segmenting
from app.charts import chart, side_chart
from app.components.canvas_heatmap import canvas_heatmap
from app.controls import choice, keyed
from app.page import Page, open_page, plain
from app.reproduce import reproduce
from app.segment_table import segment_table
from app.segmenting import Edited
from app.text import legend
from app.view import Side, update
from kvviz.align.warp import Warp
from kvviz.diagnostics.time import segment_times, what_if
from kvviz.figures import segments as figures
from kvviz.figures.canvas import CanvasPanel, quantise
from kvviz.figures.labels import visible

MOST_PLOTTED = 256 * 256  # Cells of W that plotly draws; the canvas takes more.
MOST_DRAWN = 2048 * 2048
MOST_NAMED = 24  # Teacher tokens named one by one.
LONGEST = 8192  # The largest target length of a view.


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the ribbons show: the student's own tokens, or positions of an imagined length."""

    warp: Warp
    ids_s: Tensor
    tokens_s: Sequence[str]
    imagined: bool


def draw() -> None:
    page = open_page("Segments", "Where did each stretch of the teacher's text go in the student's time?")
    segmenting.message()
    found = segmenting.sides(page.reading)
    side: Side = page.view.segment_side if page.view.segment_side in found else "teacher"
    index = min(page.view.segment, len(found[side].segments) - 1)
    _length(page)
    shown = _drawn(page)
    legend(page.reading.names, page.theme)
    _ribbons(page, shown, found, found[side].shared[index])
    _tokens(page, shown)
    left, right = st.columns(2, gap="medium")
    with left.container(border=True):
        segment_panel.borders(page, found, side, index)
    with right.container(border=True):
        segment_panel.time(page, shown.imagined, found[side].shared[index])
    _tables(page, shown, found)
    _matrix(page, shown)
    reproduce(page)


def _drawn(page: Page) -> Drawn:
    reading, config = page.reading, page.inspection.config
    own = Drawn(page.inspection.warp, reading.ids_s, reading.trace_s.tokens[0], False)
    if config.target_length is None:
        return own
    try:
        warp, ids_s = what_if(config, reading.ids_t, _clamped(page, config.target_length))
    except ValueError as error:
        st.warning(
            plain(f"No target length can be shared out: {error}. The student's own tokens are shown."),
            icon=":material/error:",
        )
        return own
    return Drawn(warp, ids_s, [str(position) for position in range(warp.T_s)], True)


def _own_length(page: Page) -> int:
    return page.reading.trace_s.q.shape[3]


def _clamped(page: Page, length: int) -> int:
    return min(max(length, 1), _longest(page))


def _longest(page: Page) -> int:
    return max(min(4 * _own_length(page), LONGEST), 2)


def _length(page: Page) -> None:
    """The what-if switch, its target length, and the time method: they decide what the ribbons show."""
    own, target = _own_length(page), page.view.alignment.target_length
    left, middle, right = st.columns([3, 3, 4], gap="medium", vertical_alignment="bottom")
    with left:
        st.toggle(
            "What-if length",
            help="What if the student had this many positions? The segments then share a target length T_s by their lengths and ratios, with no student tokens at all.",
            **keyed("target_length", target is not None, lambda on: own if on else None, place="switch."),
        )
    with middle:
        st.slider(
            "Target length T_s, positions",
            1,
            _longest(page),
            disabled=target is None,
            help=f"The student's own text has {own} tokens.",
            **keyed("target_length", _clamped(page, target or own), int, place="segments."),
        )
    with right:
        same = page.reading.prompt.same_text
        choice(
            "time_method",
            ("auto", "text", "linear", "area") if same else ("auto", "linear", "area"),
            place="segments.",
        )
    if target is not None:
        st.info(
            f"What if: {_clamped(page, target)} positions without text, in place of the student's {own} tokens. Only this page shows "
            "it; the other pages keep the student's real tokens.",
            icon=":material/science:",
        )


def _ribbons(page: Page, shown: Drawn, found: dict[Side, Edited], chosen: int) -> None:
    reading, warp = page.reading, shown.warp
    if warp.T_s * warp.T_t > MOST_DRAWN:
        st.info(
            f"{warp.T_t:,} teacher and {warp.T_s:,} student tokens are too many to draw one by one. The table below still holds.",
            icon=":material/info:",
        )
        return
    figure = figures.ribbons(
        reading.trace_t.tokens[0],
        reading.ids_t[0].tolist(),
        shown.tokens_s,
        shown.ids_s[0].tolist(),
        warp.matrix()[0].numpy(),
        warp.stretch()[0].numpy(),
        [reading.names.get(i, f"segment {i}") for i in range(max(reading.names) + 1)],
        theme=page.theme,
        chosen=chosen,
    )

    side_chart(figure, "segments.ribbons", lambda side, position: _select(shown, found, side, position))
    st.caption(
        "Bands join corresponding segments; a thin line joins each student token to the middle of what it reads. "
        "Stretch: teacher tokens for each student token. Click a token to edit its segment."
    )


def _select(shown: Drawn, found: dict[Side, Edited], side: str, position: int) -> None:
    """The clicked token's segment, on the side that has segments of its own."""
    if side == "teacher" or (side == "student" and "student" in found and not shown.imagined):
        chosen: Side = "teacher" if side == "teacher" else "student"
        tokens = found[chosen].tokens
        if 0 <= position < len(tokens) and int(tokens[position]) >= 0:
            update(segment_side=chosen, segment=int(tokens[position]))
    elif 0 <= position < shown.ids_s.shape[1]:
        shared = int(shown.ids_s[0, position])
        if shared in found["teacher"].shared:
            update(segment_side="teacher", segment=found["teacher"].shared.index(shared))


def _tokens(page: Page, shown: Drawn) -> None:
    """Teacher tokens that were dropped or duplicated, by name."""
    tokens = page.reading.trace_t.tokens[0]
    for column, positions, what, none in zip(
        st.columns(2, gap="medium"),
        (shown.warp.unread()[0], shown.warp.repeated()[0]),
        (
            "dropped: no student position reads it",
            "duplicated: two or more student positions each read half of it or more",
        ),
        ("Every teacher token is read by some student position.", "No teacher token is duplicated."),
        strict=True,
    ):
        if not positions:
            column.caption(f":material/check: {none}")
            continue
        named = "  ".join(
            f"{position} “{plain(visible(tokens[position], 24))}”" for position in positions[:MOST_NAMED]
        )
        more = f" … and {len(positions) - MOST_NAMED:,} more" if len(positions) > MOST_NAMED else ""
        count = f"{len(positions):,} of {shown.warp.T_t:,} teacher tokens"
        column.caption(f"**{count} {what}.** {named}{more}")


def _matrix(page: Page, shown: Drawn) -> None:
    st.subheader("W, which teacher token each student position reads", anchor=False)
    warp, tokens_t = shown.warp, page.reading.trace_t.tokens[0]
    cells = warp.T_s * warp.T_t
    if cells > MOST_DRAWN:
        st.info(
            f"W has {cells:,} cells, more than the {MOST_DRAWN:,} that are drawn.", icon=":material/info:"
        )
        return
    weight = warp.matrix()[0].numpy()
    if cells <= MOST_PLOTTED:
        chart(figures.warp_heatmap(weight, tokens_t, shown.tokens_s, theme=page.theme), "segments.matrix")
        return
    canvas_heatmap(
        [CanvasPanel("W", quantise(weight, 0.0, 1.0), shown.tokens_s, tokens_t)],
        low=0.0,
        high=1.0,
        unit="weight",
        row_title="student token",
        col_title="teacher token",
        key="segments.canvas",
    )


def _tables(page: Page, shown: Drawn, found: dict[Side, Edited]) -> None:
    st.subheader("All segments", anchor=False)
    config, reading = page.inspection.config, page.reading
    alphas, ratios = dict(config.alpha_map), dict(config.ratio_map)
    rows = segment_times(shown.warp, reading.ids_t, shown.ids_s, reading.names)
    st.dataframe(
        pd.DataFrame(
            {
                "segment": [row.name for row in rows],
                "teacher tokens": [row.teacher for row in rows],
                "student positions": [row.student for row in rows],
                "stretch": [row.stretch for row in rows],
                "dropped": [row.unread for row in rows],
                "duplicated": [row.repeated for row in rows],
                "alpha": [alphas.get(row.id, 1.0) for row in rows],
                "ratio": [ratios.get(row.id, 1.0) for row in rows],
            }
        ),
        hide_index=True,
        width="stretch",
        column_config={
            "stretch": st.column_config.NumberColumn(
                format="%.2f", help="Teacher tokens for each student position."
            ),
            "alpha": st.column_config.NumberColumn(format="%.2f"),
            "ratio": st.column_config.NumberColumn(format="%.2f"),
        },
    )
    for side, edited in found.items():
        segment_table(page, found, side, edited)


draw()
