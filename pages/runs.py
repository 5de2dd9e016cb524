"""Runs: all of them in a table, some of them overlaid, one of them looked at closely."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import streamlit as st

from app.charts import curve_chart
from app.controls import keyed
from app.moments import timeline
from app.page import heading, theme
from app.runs_table import Entry, entries, table
from app.view import current, update
from app.watching import TICK_SECONDS, header, log_and_message, open_in_inspector
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.checkpoint import stages
from kvviz.distill.problems import RunGone
from kvviz.distill.run import Run, list_runs, runs_root
from kvviz.errors import ExplainedError
from kvviz.figures.runs import COMPARED, overlay

LIVE_SECONDS, IDLE_SECONDS = 1.0, 3.0
MOST_OVERLAID = 12  # As many as there are colours.


def draw() -> None:
    heading("Runs", "Which runs are there, how do they compare, and what happened inside one?")
    found = list_runs()
    if not found:
        st.info(
            f"There are no runs in {plain(str(runs_root()))} yet. Launch one on the Distil page: it takes a few minutes on the "
            "bundled pair.",
            icon=":material/inbox:",
        )
        if st.button("To Distil", type="primary", icon=":material/science:", key="runs.distil"):
            st.switch_page("../pages/distil.py")
        return
    alive = any(_alive(run) for run in found)
    st.fragment(_all, run_every=LIVE_SECONDS if alive else IDLE_SECONDS)(alive)
    chosen = _chosen(found)
    if chosen is not None:
        _one(chosen)


def _alive(run: Run) -> bool:
    try:
        return run.state().alive
    except RunGone:
        return False


def _all(alive: bool) -> None:
    """Table and overlay, read again at every tick."""
    found = entries()
    if alive != any(entry.state.alive for entry in found) or not found:
        st.rerun()
    _table(found)
    _overlay(found)
    if current().to_query() != st.session_state["address"]:
        st.rerun()  # Something was chosen here: the address and the rest of the page follow.


def _table(found: list[Entry]) -> None:
    names = [entry.run.name for entry in found]
    # Rows are selected by number: another list of runs is another table, which begins with the same selection.
    key = "runs.table." + hashlib.sha256("/".join(names).encode()).hexdigest()[:12]
    compared = current().runs.split("/")
    rows = [row for row, name in enumerate(names) if name in compared]

    def picked() -> None:
        chosen = [names[row] for row in st.session_state[key].selection.rows if row < len(names)]
        new = [name for name in chosen if name not in compared]
        changes: dict[str, Any] = {"runs": "/".join([name for name in compared if name in chosen] + new)}
        if new and new[-1] != current().run:
            changes |= {"run": new[-1], "checkpoint": None, "moment": None}
        update(**changes)

    st.dataframe(
        table(found),
        key=key,
        on_select=picked,
        selection_mode="multi-row",
        selection_default={"selection": {"rows": rows, "columns": [], "cells": []}},
        hide_index=True,
        column_config={
            "Run": st.column_config.TextColumn(width=190),
            "Differs from the default in": st.column_config.TextColumn(width=230),
            "Loss": st.column_config.NumberColumn(format="%.4g", width=70),
            "Held-out": st.column_config.NumberColumn(
                format="%.4g", width=80, help="The loss on held-out examples"
            ),
        },
        placeholder="–",
    )


def _overlay(found: list[Entry]) -> None:
    compared = current().runs.split("/")
    shown = [entry for entry in reversed(found) if entry.run.name in compared][:MOST_OVERLAID]
    if not shown:
        st.caption(":material/check_box: Select rows to overlay their curves.")
        return
    st.selectbox(
        "Compared by",
        list(COMPARED),
        format_func=lambda name: COMPARED[name][0],
        width=320,
        **keyed("compare", current().compare),
    )
    curve_chart(
        overlay(
            {entry.run.name: entry.rows for entry in shown},
            current().compare,
            max(entry.state.steps for entry in shown),
            theme=theme(),
        ),
        "runs.overlay",
    )


def _chosen(found: list[Run]) -> Run | None:
    """The run looked at closely: the view's, else the newest."""
    names = [run.name for run in found]
    view = current()
    if view.run and view.run not in names:
        explain(
            f"The run {view.run} is gone.",
            f"There is no such folder in {runs_root()}: it was deleted or moved.",
            "Choose another below.",
        )
    st.divider()
    st.selectbox(
        "Run",
        names,
        **keyed(
            "run",
            view.run if view.run in names else _default(names),
            also={"checkpoint": None, "moment": None},
        ),
    )
    return found[names.index(st.session_state["control.run"])]


def _default(names: list[str]) -> str:
    """Of the runs compared the newest, else of all."""
    return next((name for name in names if name in current().runs.split("/")), names[0])


def _one(run: Run) -> None:
    st.fragment(_state, run_every=TICK_SECONDS if _alive(run) else None)(run, _alive(run))
    _look_inside(run)
    try:
        timeline(run)
        _files(run)
    except RunGone as error:
        explain(error.what, error.why, error.do)


def _state(run: Run, ticking: bool) -> None:
    try:
        state = run.state()
        if state.alive != ticking:
            st.rerun()
        header(run, state, inspect=False, more=partial(_delete, run))
        log_and_message(run, state)
    except RunGone as error:
        explain(error.what, error.why, error.do)


def _delete(run: Run) -> None:
    """With a second click, away from the first."""
    with st.popover("Delete", icon=":material/delete:", disabled=_alive(run)):
        st.markdown(
            f"Delete **{plain(run.name)}** with its metrics, log and checkpoints? It cannot be undone."
        )
        if st.button("Delete it", key=f"{run.name}.delete", type="primary"):
            try:
                launch.delete(run)
            except ExplainedError as error:
                explain(error.what, error.why, error.do)
                return
            except OSError as error:
                explain("The run was not deleted.", str(error), "Look at its folder.")
                return
            left = "/".join(name for name in current().runs.split("/") if name not in ("", run.name))
            update(run="", checkpoint=None, moment=None, runs=left)
            st.rerun()


def _look_inside(run: Run) -> None:
    try:
        there = stages(run)
    except RunGone:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if not there:
            st.caption("There is no checkpoint to look inside yet.")
            return
        key = "runs.checkpoint"
        if st.session_state.get(key) not in there:
            st.session_state[key] = there[-1]
        st.selectbox(
            "Look inside at step",
            there,
            key=key,
            format_func=lambda step: "0, its start" if step == 0 else f"{step}, a checkpoint",
            width=260,
        )
        if st.button(
            "Open in inspector",
            key="runs.inspect",
            icon=":material/visibility:",
            help="Its student and projectors at that step, on every inspection page.",
        ):
            open_in_inspector(run, st.session_state[key])
        if st.button(
            "Watch", key="runs.watch", icon=":material/monitoring:", help="Its curves on the Distil page."
        ):
            update(run=run.name, checkpoint=None)
            st.switch_page("../pages/distil.py")


def _files(run: Run) -> None:
    with st.expander("Configuration and log", icon=":material/description:"):
        left, right = st.columns([1, 2])
        with left:
            try:
                text = run.config.to_yaml()
                st.caption("config.yaml: what differs from the defaults")
                st.code(text, language="yaml")
                st.download_button("Download config.yaml", text, "config.yaml", icon=":material/download:")
            except ConfigError as error:
                explain("config.yaml cannot be used.", str(error), "Mend it, or delete the run.")
        with right:
            st.caption("The last lines of its log")
            st.code(run.log_tail(25) or "Nothing was printed yet.", language=None, height=320)


draw()
