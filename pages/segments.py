"""Segments: where each stretch of the teacher's text went in the student's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st
from torch import Tensor

from app import segmenting
from app.charts import chart, side_chart
from app.components.canvas_heatmap import canvas_heatmap
from app.controls import choice, keyed
from app.page import Page, open_page, plain
from app.reproduce import reproduce
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
RATIO_TOP = 4.0
EXCERPT = 90  # Characters of a segment shown in the table.


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
    _ribbons(page, shown, found)
    _tokens(page, shown)
    left, right = st.columns(2, gap="medium")
    with left.container(border=True):
        _borders(page, found, side, index)
    with right.container(border=True):
        _time(page, shown, found[side].shared[index])
    _tables(page, shown, found)
    _matrix(page, shown)
    reproduce(page)


# --- the picture ------------------------------------------------------------------------------------


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


def _ribbons(page: Page, shown: Drawn, found: dict[Side, Edited]) -> None:
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


# --- one segment ------------------------------------------------------------------------------------


def _borders(page: Page, found: dict[Side, Edited], side: Side, index: int) -> None:
    """Choose a segment; rename it, move its border, cut it, merge it."""
    edited = found[side]
    segment, count = edited.segments[index], len(edited.segments)
    st.markdown("##### Segment")
    if len(found) > 1:
        choice("segment_side", label="Whose text", place="segments.", also={"segment": 0})
    st.selectbox(
        "Segment",
        range(count),
        format_func=lambda i: f"{i + 1}. {edited.segments[i].name}",
        label_visibility="collapsed",
        **keyed("segment", index, place="segments."),
    )
    state = f"{side}.{index}.{page.view.segments}.{page.view.student_segments}"
    key = "segments.name"
    st.session_state[key] = segment.name
    st.text_input(
        "Name",
        key=key,
        max_chars=80,
        on_change=lambda: segmenting.rename(found, side, index, st.session_state[key]),
    )
    _begin(found, side, index)
    first, last = edited.first(index), edited.last(index)
    can_cut = first is not None and last is not None and last > first
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    at = left.number_input(
        "Cut at token",
        min_value=(first or 0) + 1 if can_cut else 0,
        max_value=last if can_cut else 0,
        value=((first or 0) + (last or 0) + 1) // 2 if can_cut else 0,
        disabled=not can_cut,
        key=f"segments.cut.{state}",
        help="The new segment begins with this token; it can be renamed and moved then.",
    )
    right.button(
        "Add segment",
        icon=":material/content_cut:",
        disabled=not can_cut,
        width="stretch",
        on_click=lambda: segmenting.add(found, side, index, edited.character(int(at)), ""),
    )
    left, right = st.columns(2)
    left.button(
        "Merge with next" if index < count - 1 else "Merge with previous",
        icon=":material/merge:",
        disabled=count == 1,
        width="stretch",
        on_click=lambda: segmenting.merge(found, side, index),
    )
    right.button(
        "Back to found",
        icon=":material/restart_alt:",
        disabled=not getattr(page.view, edited.field),
        width="stretch",
        on_click=lambda: segmenting.forget(found, side),
        help="Back to the segments found in the text.",
    )


def _begin(found: dict[Side, Edited], side: Side, index: int) -> None:
    """A slider for the border before a segment."""
    edited = found[side]
    before, last = edited.first(index - 1) if index else None, edited.last(index)
    here = edited.first(index)
    if index == 0:
        st.caption("The first segment begins where the text begins.")
        return
    if before is None or here is None or last is None or before + 1 >= last:
        st.caption("No room to move the border: the segment or the one before it is a token long.")
        return
    key = "segments.begin"
    st.session_state[key] = here

    def moved() -> None:
        segmenting.move(found, side, index, edited.character(st.session_state[key]))

    st.slider(
        "Begins at token",
        before + 1,
        last,
        key=key,
        on_change=moved,
        help="The segment before it ends there.",
    )


def _time(page: Page, shown: Drawn, shared: int) -> None:
    """Alpha and ratio of the segments that share an id."""
    config, name = page.inspection.config, page.reading.names[shared]
    st.markdown("##### Its time")
    st.caption(f"Applies to “\u2068{plain(name)}\u2069” on both sides.")
    alphas, ratios = dict(config.alpha_map), dict(config.ratio_map)
    text = not shown.imagined and (
        config.time_method == "text" or (config.time_method == "auto" and page.reading.prompt.same_text)
    )
    st.slider(
        "Alpha: 0 nearest … 1 linear",
        0.0,
        1.0,
        step=0.05,
        disabled=text,
        help="How a student position between two teacher tokens reads them: the nearer one alone, or both by distance.",
        **keyed(
            "alpha_map",
            float(alphas.get(shared, 1.0)),
            lambda value: _with(alphas, shared, value),
            place="segments.",
        ),
    )
    if text:
        st.caption(
            "Alpha has no effect under the text method, which matches characters. Switch to interpolate inside each segment:"
        )
        st.button(
            "Use the linear method", icon=":material/timeline:", on_click=lambda: update(time_method="linear")
        )
    elif config.time_method == "area":
        st.caption("Under the area method alpha acts only where a segment is not compressed.")
    ratio = float(ratios.get(shared, 1.0))
    st.slider(
        "Ratio: share of the target length",
        0.0,
        max(RATIO_TOP, ratio),
        step=0.05,
        disabled=not shown.imagined,
        help="Relative to the segment's own length: 2 gives it twice the share of T_s that its tokens would.",
        **keyed("ratio_map", ratio, lambda value: _with(ratios, shared, value), place="segments."),
    )
    if not shown.imagined:
        st.caption(
            "Ratios share out a target length. Now the student's own tokens set the lengths: ask “what if” above to use them."
        )
    if alphas or ratios:
        st.button(
            "Reset every alpha and ratio",
            icon=":material/restart_alt:",
            on_click=lambda: update(alpha_map=(), ratio_map=()),
        )


def _with(numbers: dict[int, float], shared: int, value: float) -> dict[int, float]:
    """The numbers with one set; 1 is the default and is not kept."""
    kept = {key: number for key, number in numbers.items() if key != shared}
    return kept if value == 1.0 else kept | {shared: value}


# --- tables -----------------------------------------------------------------------------------------


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
        _editor(page, found, side, edited)


def _editor(page: Page, found: dict[Side, Edited], side: Side, edited: Edited) -> None:
    """The segments of one text as a table whose names and beginnings can be typed over."""
    whose = "both models' text" if len(found) == 1 else f"the {side}'s text"
    st.caption(f"Segments of {whose}. Double-click a name or a beginning to change it.")
    # A new key after every edit, valid or not: the table is drawn afresh from the view.
    edits = st.session_state.setdefault("segments.edits", 0)
    key = f"segments.table.{side}.{edits}.{hash(edited.segments)}"

    def typed() -> None:
        st.session_state["segments.edits"] += 1
        for row, cells in st.session_state[key]["edited_rows"].items():
            for column, value in cells.items():
                _type(found, side, int(row), column, value)

    st.data_editor(
        pd.DataFrame(
            {
                "name": [segment.name for segment in edited.segments],
                "begins at token": [edited.first(i) for i in range(len(edited.segments))],
                "begins at character": [segment.start for segment in edited.segments],
                "kind": [segment.kind for segment in edited.segments],
                "goes with": [page.reading.names[shared] for shared in edited.shared],
                "text": [_excerpt(edited.text[segment.start : segment.end]) for segment in edited.segments],
            }
        ),
        key=key,
        on_change=typed,
        hide_index=True,
        num_rows="fixed",
        width="stretch",
        disabled=["kind", "goes with", "text"],
        column_config={
            "name": st.column_config.TextColumn(max_chars=80),
            "begins at token": st.column_config.NumberColumn(min_value=0, step=1),
            "begins at character": st.column_config.NumberColumn(min_value=0, step=1),
        },
    )


def _excerpt(text: str) -> str:
    """The beginning of a segment, on one line."""
    # A segment may be 10 MB long: only what can be shown is looked at.
    words = " ".join(text[: 4 * EXCERPT].split())
    return words if len(words) <= EXCERPT else words[: EXCERPT - 1] + "…"


def _type(found: dict[Side, Edited], side: Side, row: int, column: str, value: Any) -> None:
    """One cell that a person typed over."""
    if column == "name":
        segmenting.rename(found, side, row, str(value or ""))
        return
    edited = found[side]
    last = len(edited.tokens) - 1
    if value is None:
        character = -1
    elif column == "begins at token":
        character = edited.character(int(value)) if 0 <= int(value) <= last else -1
    else:
        character = int(value)
    segmenting.move(found, side, row, character)


draw()
