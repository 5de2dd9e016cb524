"""The line over every inspection page that looks inside a run: which one, which step, the other steps, the way back."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app.looking import looked_at
from app.view import View, update
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill.checkpoint import Stage, stages
from kvviz.errors import ExplainedError


def banner(view: View) -> Stage | None:
    """On an inspection page: which run and step is looked at, the other steps, and the way back.

    Stops the page with a message where the run cannot be looked at.
    """
    try:
        at = looked_at(view)
    except (ExplainedError, ConfigError) as error:
        if isinstance(error, ExplainedError):
            explain(error.what, error.why, error.do)
        else:
            explain(
                f"Run {view.run} cannot be looked at.", str(error), "Choose another run on the Runs page."
            )
        with st.container(horizontal=True):
            _way_back()
            st.page_link("../pages/runs.py", label="All runs", icon=":material/list_alt:")
        st.stop()
    if at is None:
        return None
    there = stages(at.run)
    place = there.index(at.step)
    with st.container(border=True):
        with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="small"):
            st.markdown(
                f":material/science: **Inside run {plain(at.run.name)}, {_named(at.step)}** of {at.run.config.steps}",
                width="stretch",
                help="Student and projectors are those of that step. The pair and the projector controls of the sidebar show "
                "what the run was made with; they are free again on the plain pair. Text, time and attention can be changed.",
            )
            for icon, move, words in (
                ("chevron_left", -1, "Previous"),
                ("chevron_right", 1, "Next"),
            ):
                there_is = 0 <= place + move < len(there)
                st.button(
                    "",
                    key=f"looking.{words}",
                    icon=f":material/{icon}:",
                    help=f"{words} checkpoint",
                    disabled=not there_is,
                    on_click=partial(update, checkpoint=there[place + move] if there_is else at.step),
                )
            _way_back()
        if len(there) > 1:
            key = "looking.step"
            st.session_state[key] = at.step
            st.select_slider(
                "Step looked at: 0 is before the run",
                there,
                key=key,
                on_change=lambda: update(checkpoint=st.session_state[key]),
            )
    return at


def _way_back() -> None:
    st.button(
        "Back to the plain pair",
        key="looking.back",
        icon=":material/undo:",
        on_click=partial(update, checkpoint=None),
    )


def _named(step: int) -> str:
    return "at its start, step 0" if step == 0 else f"step {step}"
