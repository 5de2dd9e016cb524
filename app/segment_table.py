"""The segments of a text as a table whose names and beginnings can be typed over."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import segmenting
from app.page import Page
from app.segmenting import Edited
from app.view import Side

EXCERPT = 90  # Characters of a segment shown.


def segment_table(page: Page, found: dict[Side, Edited], side: Side, edited: Edited) -> None:
    """The table of one side. An edit reaches the view; one that cannot be made says why above the page."""
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
