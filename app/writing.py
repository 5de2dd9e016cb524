"""Let the teacher write the reasoning itself, streamed, and align on what it wrote."""

from __future__ import annotations

import threading

import streamlit as st

from app.page import Page, explain
from app.view import update
from kvviz import bundled
from kvviz.capture import PromptError
from kvviz.generate import stream_greedy

MOST_TOKENS = 400


def teacher_writes(page: Page) -> None:
    """A button; while the teacher writes, its text grows in place and can be cancelled."""
    asked = st.button(
        "Let the teacher write the reasoning",
        icon=":material/edit_note:",
        help=f"Greedy decoding, at most {MOST_TOKENS} tokens. The alignment then runs on what it wrote.",
    )
    if not asked:
        return
    view = page.view
    prompt = bundled.examples()[view.example].prompt if view.source == "example" else page.reading.prompt.text
    stop = threading.Event()
    slot = st.container(border=True)
    slot.button("Cancel", key="writing.cancel")
    shown, written = slot.empty(), ""
    try:
        for piece in stream_greedy(page.teacher, prompt, MOST_TOKENS, stop):
            written += piece
            shown.text(prompt + written)
    except PromptError as error:
        explain(error.what, error.why, error.do)
        return
    finally:
        # A rerun (Cancel, or any other control) ends this script here: the generation must end with it.
        stop.set()
    update(source="own", text=prompt + written, segments="", student_segments="")
    st.rerun()
