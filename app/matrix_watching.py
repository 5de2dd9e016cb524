"""A matrix as it goes on: its queue's state and buttons, its runs in a grid of arms and seeds, what they found so far."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import streamlit as st

from app.charts import curve_chart
from app.matrix_table import accuracy_table, cache_table
from app.page import theme
from app.view import current
from app.watching import COLORS, ICONS
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill import ab
from kvviz.distill.arms import ARMS
from kvviz.distill.matrix import CONFIG, Cell, Matrix
from kvviz.distill.problems import RunGone
from kvviz.distill.progress import duration
from kvviz.distill.queue import resume_matrix, stop_matrix
from kvviz.distill.status import RunState
from kvviz.errors import ExplainedError
from kvviz.figures.ab import Legend, accuracy_chart, accuracy_legend, difference_chart, difference_legend

TICK_SECONDS = 2.0
NOTE = 300  # Characters of a failed run's message that there is room for.
# Between two ticks nothing is stale: Streamlit would fade what it has not yet drawn again.
STEADY = "<style>.st-key-matrix [data-stale] {opacity: 1 !important; transition: none !important}</style>"
QUEUE_WORDS = {
    "queued": "The queue is about to begin.",
    "starting": "The queue is about to begin.",
    "stopping": "The run that lives finishes its step and writes a checkpoint; no other is begun.",
    "stopped": "Resume goes on with what is not finished.",
    "lost": "The queue's process is gone without a word. What is finished stays; resume goes on with the rest.",
}
Standing = tuple[Cell, RunState | None]


def follow(matrix: Matrix) -> None:
    """The matrix, live while its queue or one of its runs is alive."""
    ticking = _alive(matrix)
    st.fragment(_live, run_every=TICK_SECONDS if ticking else None)(matrix, ticking)


def _alive(matrix: Matrix) -> bool:
    try:
        return matrix.state().alive or any(state is not None and state.alive for _, state in _stand(matrix))
    except (RunGone, ConfigError):
        return False


def _stand(matrix: Matrix) -> list[Standing]:
    return [(cell, cell.state) for cell in matrix.cells()]


def _live(matrix: Matrix, ticking: bool) -> None:
    try:
        state, standings = matrix.state(), _stand(matrix)
    except RunGone:
        explain(
            f"The matrix {matrix.name} is gone.",
            f"There is no folder {matrix.folder}: it was deleted or moved.",
            "Choose another, or launch one.",
        )
        return
    except ConfigError as error:
        explain(f"{matrix.name} cannot be read.", str(error), f"Mend its {CONFIG}, or delete its folder.")
        return
    alive = state.alive or any(one is not None and one.alive for _, one in standings)
    if alive != ticking:
        st.rerun()  # The whole page: it starts the ticking, or ends it.
    with st.container(key="matrix"):
        st.html(STEADY)
        _header(matrix, state, standings)
        _progress(state, standings)
        _grid(standings)
        _failures(standings)
        _findings(matrix, standings)


def _header(matrix: Matrix, state: RunState, standings: Sequence[Standing]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{plain(matrix.name)}**", width="content")
        color: Any = COLORS[state.status]
        st.badge(state.status, icon=ICONS[state.status], color=color)
        if state.alive or any(one is not None and one.alive for _, one in standings):
            st.button(
                "Stop matrix",
                key="ab.stop",
                icon=":material/stop:",
                disabled=state.status == "stopping",
                help="The run that lives finishes its step and writes a checkpoint; no other is begun. It can be resumed.",
                on_click=partial(_try, matrix, stop_matrix),
            )
        if not state.alive and _left(standings):
            st.button(
                "Resume matrix",
                key="ab.resume",
                icon=":material/play_arrow:",
                help="Goes on with what is not finished; runs that failed are made anew from their last checkpoint.",
                on_click=partial(_try, matrix, resume_matrix),
            )
    name, *words = st.session_state.get("matrix_trouble", [""])
    if name == matrix.name:
        explain(*words)


def _try(matrix: Matrix, act: Callable[[Matrix], Any]) -> None:
    """Do something to a matrix in a callback; what goes wrong is said until something else is done."""
    st.session_state.pop("matrix_trouble", None)
    try:
        act(matrix)
    except ExplainedError as error:
        st.session_state["matrix_trouble"] = (matrix.name, error.what, error.why, error.do)
    except (ConfigError, OSError) as error:
        words = ("That did not work.", str(error), "Look at the matrix's folder.")
        st.session_state["matrix_trouble"] = (matrix.name, *words)


def _left(standings: Sequence[Standing]) -> int:
    return sum(state is None or state.status != "finished" for _, state in standings)


def _progress(state: RunState, standings: Sequence[Standing]) -> None:
    total = len(standings)
    finished = total - _left(standings)
    failed = sum(one is not None and one.status in ("failed", "lost") for _, one in standings)
    words = f"{finished} of {total} runs finished"
    if failed:
        words += f", {failed} failed"
    if state.alive and (left := _time_left(standings)) is not None:
        words += f", about {duration(left)} left"
    words += f". {QUEUE_WORDS.get(state.status, '')}"
    st.progress(sum(_share(one) for _, one in standings) / max(total, 1), words)
    if state.status == "failed":
        st.error("  \n".join(plain(line) for line in state.message.splitlines()), icon=ICONS["failed"])


def _share(state: RunState | None) -> float:
    """How much of a run is done."""
    if state is None:
        return 0.0
    if state.status == "finished":
        return 1.0
    return min(state.step / state.steps, 1.0) if state.steps else 0.0


def _time_left(standings: Sequence[Standing]) -> float | None:
    """Seconds, at the pace of the runs that finished; None before the first has."""
    states = [state for _, state in standings if state is not None]
    took = [state.updated - state.created for state in states if state.status == "finished"]
    if not took:
        return None
    at_once = max(sum(state.alive for state in states), 1)
    undone = sum(1 - _share(state) for _, state in standings)
    return statistics.median(took) * undone / at_once


def _grid(standings: Sequence[Standing]) -> None:
    """A row an arm, a column a seed; each run with its status, its steps, and the way to it: a line each, so that nothing jumps."""
    seeds = list(dict.fromkeys(cell.seed for cell, _ in standings))
    arms = list(dict.fromkeys(cell.arm for cell, _ in standings))
    place = {(cell.arm, cell.seed): (cell, state) for cell, state in standings}
    widths = [2.0] + [1.0] * len(seeds)
    with st.container(border=True, gap="xsmall"):
        _, *heads = st.columns(widths)
        for column, seed in zip(heads, seeds, strict=True):
            column.caption(f"seed {seed}")
        for arm in arms:
            title, *columns = st.columns(widths, vertical_alignment="center")
            title.markdown(ARMS[arm].title)
            for column, seed in zip(columns, seeds, strict=True):
                with column:
                    _cell(*place[arm, seed])


def _cell(cell: Cell, state: RunState | None) -> None:
    if state is None:
        st.caption("not begun")
        return
    step = f" {state.step:,} / {state.steps:,}" if state.status != "finished" else ""
    st.page_link(
        "../pages/runs.py",
        label=f"{state.status}{step}",
        icon=ICONS[state.status],
        help=f"{plain(cell.run.name)}, on the Runs page",
        query_params=current()
        .model_copy(update={"run": cell.run.name, "checkpoint": None, "moment": None})
        .to_query(),
    )


def _failures(standings: Sequence[Standing]) -> None:
    for cell, state in standings:
        if state is not None and state.status in ("failed", "lost"):
            st.error(
                f"**{plain(cell.run.name)}** {state.status}; the others go on.  \n"
                + "  \n".join(plain(line) for line in state.message[:NOTE].splitlines()),
                icon=ICONS[state.status],
            )


def _findings(matrix: Matrix, standings: Sequence[Standing]) -> None:
    done = tuple(
        (cell.run.name, state.updated)
        for cell, state in standings
        if state is not None and state.status == "finished"
    )
    found = replace(_table(str(matrix.folder), done, _matrix=matrix), states=_count(standings))
    st.subheader("What it found", anchor=False)
    if not done:
        st.caption(":material/hourglass_empty: The table fills while runs end; the first has yet to.")
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Exact match**", help="Of held-out problems by greedy decoding at the end of the run.")
        _legend(accuracy_legend(found.rows, theme()))
        curve_chart(accuracy_chart(found.rows, theme=theme()), "ab.accuracy")
    with right:
        st.markdown(
            "**Paired differences**",
            help="On the same problems with the same seeds. An interval that holds 0 is no difference that can be told from chance.",
        )
        _legend(difference_legend(theme()))
        curve_chart(difference_chart(found.rows, theme=theme()), "ab.differences")
    accuracy_table(found.rows, theme())
    _verdict(found)
    st.markdown("**What became of the cache, and what it cost**")
    cache_table(found.rows, theme())
    _downloads(matrix, found)


def _legend(entries: Legend) -> None:
    st.html(
        '<div style="display:flex;flex-wrap:wrap;column-gap:16px;font-size:0.8rem">'
        + "".join(
            f'<span><span style="color:{color}">{mark}</span> {escape(words)}</span>'
            for mark, color, words in entries
        )
        + "</div>"
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _table(folder: str, done: tuple[tuple[str, float], ...], _matrix: Matrix) -> ab.Table:
    """Read once for each run that finishes: its intervals take seconds."""
    return ab.table(_matrix)


def _count(standings: Sequence[Standing]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for _, state in standings:
        status = "not begun" if state is None else state.status
        counted[status] = counted.get(status, 0) + 1
    return counted


def _verdict(found: ab.Table) -> None:
    starts = [row.start_accuracy for row in found.rows if row.start_accuracy is not None]
    lines = []
    if starts:
        lines.append(
            f"Before any step the student solved {sum(starts) / len(starts):.1%} of the same problems."
        )
    lines += ab.verdict(found)
    st.markdown("\n".join(f"- {plain(line)}" for line in lines) or "There is nothing to compare yet.")


def _downloads(matrix: Matrix, found: ab.Table) -> None:
    command = f"kvviz ab {CONFIG} --name {matrix.name}"
    with st.container(horizontal=True):
        for label, text, name, kind in (
            ("Markdown", ab.as_markdown(found, command), "md", "text/markdown"),
            ("JSON", ab.as_json(found), "json", "application/json"),
        ):
            st.download_button(
                label,
                text,
                f"{matrix.name}.{name}",
                kind,
                key=f"ab.download.{name}",
                icon=":material/download:",
                on_click="ignore",
            )
    with st.expander(f"{CONFIG} and the queue's log", icon=":material/description:"):
        left, right = st.columns(2)
        with left:
            st.code(matrix.config.to_yaml(), language="yaml")
            st.code(command, language="bash", wrap_lines=True)
        with right:
            st.code(matrix.process.log_tail(25) or "Nothing was printed yet.", language=None, height=320)
