"""A run as it goes on: its state, its buttons and its curves, redrawn from its folder a little more than once a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import streamlit as st

from app.charts import curve_chart
from app.page import theme
from app.view import update
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.metrics import MetricsTail
from kvviz.distill.problems import RunGone
from kvviz.distill.progress import Pace, duration, pace
from kvviz.distill.run import Run
from kvviz.distill.status import STOP, RunState, Status
from kvviz.errors import ExplainedError
from kvviz.figures.runs import BY_KEY, PANELS, Panel, panel_chart

TICK_SECONDS = 0.5
PATIENCE_SECONDS = 8.0  # A stop that takes longer than this can be made firm.
# Between two ticks nothing is stale, however busy the machine: Streamlit would fade what it has not yet drawn again.
STEADY = "<style>.st-key-live [data-stale] {opacity: 1 !important; transition: none !important}</style>"
COLUMNS = 3
BOX_HEIGHT = 136  # Of a figure with a line below it: the line comes later.
ICONS = {
    "queued": ":material/hourglass_top:",
    "starting": ":material/rocket_launch:",
    "running": ":material/play_circle:",
    "stopping": ":material/pending:",
    "stopped": ":material/stop_circle:",
    "finished": ":material/check_circle:",
    "failed": ":material/error:",
    "lost": ":material/link_off:",
}
COLORS: dict[Status, Literal["gray", "blue", "orange", "green", "red"]] = {
    "queued": "gray",
    "starting": "blue",
    "running": "blue",
    "stopping": "orange",
    "stopped": "orange",
    "finished": "green",
    "failed": "red",
    "lost": "red",
}
WORDS = {
    "queued": "Waiting for its device.",
    "starting": "Loading the pair and its examples, calibrating the projectors, evaluating the start.",
    "stopping": "It finishes its step and writes a checkpoint.",
}


def tail(run: Run) -> MetricsTail:
    """This visitor's reader of a run's metrics: each look takes in only what is new."""
    tails: dict[str, MetricsTail] = st.session_state.setdefault("tails", {})
    return tails.setdefault(str(run.folder), run.tail())


def watch(run: Run) -> None:
    """The run, live while it is alive."""
    try:
        alive = run.state().alive
    except RunGone:
        alive = False
    st.fragment(_live, run_every=TICK_SECONDS if alive else None)(run, alive)


def _live(run: Run, ticking: bool) -> None:
    try:
        state, rows = run.state(), tail(run).read()
    except RunGone as error:
        explain(error.what, error.why, error.do)
        return
    if state.alive != ticking:
        st.rerun()  # The whole page: it starts the ticking, or ends it.
    with st.container(key="live"):
        st.html(STEADY)
        header(run, state)
        _progress(run, state, rows)
        log_and_message(run, state)
        _collapse(rows)
        curves(run, rows, state.steps)


def header(
    run: Run, state: RunState, *, inspect: bool = True, more: Callable[[], None] = lambda: None
) -> None:
    """Name, status, and what can be done with the run; more: draws more of that."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{plain(run.name)}**", width="content")
        st.badge(state.status, icon=ICONS[state.status], color=COLORS[state.status])
        if state.alive:
            asked = _asked_for(run)
            st.button(
                "Stop run",
                key=f"{run.name}.stop",
                icon=":material/stop:",
                disabled=asked is not None,
                help="It finishes its step, writes a checkpoint and stops; it can be resumed.",
                on_click=partial(_try, run, run.request_stop),
            )
            if asked is not None and asked > PATIENCE_SECONDS:
                st.button(
                    "Stop now",
                    key=f"{run.name}.stop-now",
                    icon=":material/dangerous:",
                    help="Ends its processes; the steps since the last checkpoint are lost.",
                    on_click=partial(_try, run, partial(launch.stop, run, 0.0)),
                )
        elif state.status != "finished":
            st.button(
                "Resume",
                key=f"{run.name}.resume",
                icon=":material/play_arrow:",
                help="Goes on from the last checkpoint, with the same order of data.",
                on_click=partial(_try, run, partial(launch.resume, run)),
            )
        checkpoints = _checkpoints(run)
        if checkpoints and inspect:
            inspect_button(run, checkpoints[-1])
        more()
    name, *words = st.session_state.get("trouble", [""])
    if name == run.name:
        explain(*words)


def inspect_button(run: Run, step: int, label: str = "Open in inspector") -> None:
    """Opens a step of the run in the inspection pages."""
    if st.button(
        label,
        key=f"{run.name}.inspect",
        icon=":material/visibility:",
        help=f"Step {step}: its student and projectors, on every inspection page.",
    ):
        open_in_inspector(run, step)


def open_in_inspector(run: Run, step: int) -> None:
    """Go to the first inspection page, inside a run."""
    from app.looking import opened

    try:
        update(**opened(run, step))
    except (ConfigError, RunGone) as error:
        explain(f"{run.name} cannot be looked at.", str(error), "Choose another run.")
        return
    st.switch_page("../pages/overview.py")


def _checkpoints(run: Run) -> list[int]:
    try:
        return run.checkpoints()
    except RunGone:
        return []


def _asked_for(run: Run) -> float | None:
    """Seconds since a stop was asked for; None where none was."""
    try:
        return time.time() - (run.folder / STOP).stat().st_mtime
    except OSError:
        return None


def _try(run: Run, act: Callable[[], Any]) -> None:
    """Do something to a run in a callback; what goes wrong is said under its name until something else is done."""
    st.session_state.pop("trouble", None)
    try:
        act()
    except ExplainedError as error:
        st.session_state["trouble"] = (run.name, error.what, error.why, error.do)
    except (ConfigError, OSError) as error:
        st.session_state["trouble"] = (
            run.name,
            "That did not work.",
            str(error),
            "Look at the run's folder.",
        )


def _progress(run: Run, state: RunState, rows: Sequence[Mapping[str, Any]]) -> None:
    done = min(state.step / state.steps, 1.0) if state.steps else 0.0
    known = pace(rows)
    words = WORDS.get(state.status, "")
    if state.status == "starting":
        words = _last_line(run) or words
    st.progress(done, f"Step {state.step:,} of {state.steps:,}. {plain(words)}")
    left = known.left(state.step, state.steps) if state.alive else None
    accuracy = _latest(rows, "accuracy")
    # Boxes that are there from the first moment, empty or not: nothing moves when their figures come.
    step, time_left, speed, right = st.columns(4)
    box: dict[str, Any] = {"border": True, "height": BOX_HEIGHT, "delta_color": "off", "delta_arrow": "off"}
    step.metric(
        "Seconds a step",
        "–" if known.seconds_step is None else f"{known.seconds_step:.3g}",
        help="Of the last logs, evaluations included.",
        **box,
    )
    time_left.metric(
        "Time left", "–" if left is None else duration(left), help="At the pace of the last logs.", **box
    )
    speed.metric("Tokens a second", _tokens(known), help="Of texts trained on, padding left out.", **box)
    right.metric(
        "Exact match",
        "–" if accuracy is None else f"{accuracy['accuracy']:.0%}",
        ""
        if accuracy is None
        else f"{accuracy.get('accuracy_low', 0):.0%} to {accuracy.get('accuracy_high', 1):.0%} at step {accuracy['step']:,}",
        help="Of held-out problems at the last evaluation, with Wilson's 95% interval.",
        **box,
    )


def _tokens(known: Pace) -> str:
    return "–" if known.tokens_second is None else f"{known.tokens_second:,.0f}"


def _last_line(run: Run) -> str:
    try:
        return run.log_tail(1).strip()[:120]
    except RunGone:
        return ""


def log_and_message(run: Run, state: RunState) -> None:
    """What an ended run says of its end, and the last lines of its log where it failed."""
    if not state.message:
        return
    text = "  \n".join(plain(line) for line in state.message.splitlines())
    if state.status in ("failed", "lost"):
        st.error(text, icon=ICONS[state.status])
        log = run.log_tail(15)
        if log:
            st.code(log, language=None)
    else:
        st.caption(text)


def _collapse(rows: Sequence[Mapping[str, Any]]) -> None:
    from kvviz.distill.evaluate import collapsing

    measured = [row for row in rows if "k_spread" in row or "v_spread" in row]
    if len(measured) > 1:
        for warning in collapsing(measured[-1], measured[0]):
            st.warning(warning, icon=":material/compress:")


def curves(run: Run, rows: Sequence[Mapping[str, Any]], steps: int) -> None:
    """Every panel that the run's objective has, in a grid."""
    shown = [panel for panel in PANELS if panel.key != "kd_loss" or _uses_kd(run, rows)]
    for first in range(0, len(shown), COLUMNS):
        for column, panel in zip(
            st.columns(COLUMNS, gap="medium"), shown[first : first + COLUMNS], strict=False
        ):
            with column:
                _curve(run, panel, rows, steps)


def _curve(run: Run, panel: Panel, rows: Sequence[Mapping[str, Any]], steps: int) -> None:
    st.markdown(f"**{panel.title}**", help=panel.definition)
    curve_chart(panel_chart(BY_KEY[panel.key], rows, steps, theme=theme()), f"curve.{panel.key}")


def _uses_kd(run: Run, rows: Sequence[Mapping[str, Any]]) -> bool:
    try:
        return run.config.loss_config.alpha_kd > 0
    except (ConfigError, RunGone):
        return any("kd_loss" in row for row in rows)


def _latest(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((row for row in reversed(rows) if row.get(name) is not None), None)
