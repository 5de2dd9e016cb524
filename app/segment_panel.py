"""One segment: its name and borders, and how its time runs."""

from __future__ import annotations

import streamlit as st

from app import segmenting
from app.controls import choice, keyed
from app.page import Page, plain
from app.segmenting import Edited
from app.view import Side, update

RATIO_TOP = 4.0


def borders(page: Page, found: dict[Side, Edited], side: Side, index: int) -> None:
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


def time(page: Page, imagined: bool, shared: int) -> None:
    """Alpha and ratio of the segments that share an id."""
    config, name = page.inspection.config, page.reading.names[shared]
    st.markdown("##### Its time")
    st.caption(f"Applies to “\u2068{plain(name)}\u2069” on both sides.")
    alphas, ratios = dict(config.alpha_map), dict(config.ratio_map)
    text = not imagined and (
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
        disabled=not imagined,
        help="Relative to the segment's own length: 2 gives it twice the share of T_s that its tokens would.",
        **keyed("ratio_map", ratio, lambda value: _with(ratios, shared, value), place="segments."),
    )
    if not imagined:
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
