"""Distil: what a run is to learn from the pair of the sidebar, what it would take, and the run as it goes on."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app.estimating import begin, estimate
from app.form import field, problems
from app.looking import run_of
from app.page import heading
from app.recipe import config_of
from app.view import current, update
from app.watching import watch
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.config import DistillConfig
from kvviz.distill.data import DataError, load_data
from kvviz.errors import ExplainedError

WEIGHTS = ("alpha_ce", "alpha_kd", "alpha_k", "alpha_v", "alpha_attn")
COURSE = ("steps", "batch_size", "learning_rate", "seed", "eval_every", "eval_examples")
REST = (
    ("data", "data_config", "student_reads", "max_length"),
    ("gradient_accumulation", "warmup_steps", "schedule", "weight_decay", "clip_norm"),
    ("log_every", "max_new_tokens", "calibration_examples", "temperature"),
    ("report_to", "trainer"),
)
SHOWN = {*WEIGHTS, *COURSE, "aligner", *(name for names in REST for name in names)}


def draw() -> None:
    heading("Distil", "Train the student towards the teacher's answers and its KV cache, and watch it learn.")
    run = current().run
    with st.expander("A new run", expanded=not run, icon=":material/add:"):
        _new_run()
    if run:
        watch(run_of(current()))
    else:
        st.info(
            "Launch a run, or choose one on the Runs page: its curves are drawn here.",
            icon=":material/show_chart:",
        )
    st.page_link("../pages/runs.py", label="All runs", icon=":material/list_alt:")


def _new_run() -> None:
    view = current()
    wrong: dict[str, str] = {}
    config: DistillConfig | None = None
    try:
        config = config_of(view)
    except ConfigError as error:
        wrong = problems(error)
    _fields(wrong)
    if view.alignment.target_length is not None:
        st.caption(
            "The target length of the Segments page is left out: a run takes its lengths from the texts."
        )
    if elsewhere := {name: words for name, words in wrong.items() if name not in SHOWN | {"loss_config"}}:
        st.error(
            "  \n".join(plain(f"{name}: {words}" if name else words) for name, words in elsewhere.items())
            + "  \nChange it in the sidebar.",
            icon=":material/error:",
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        start = st.button(
            "Launch",
            type="primary",
            icon=":material/rocket_launch:",
            key="distil.launch",
            disabled=config is None,
        )
        st.button(
            "Estimate",
            icon=":material/timer:",
            key="distil.estimate",
            disabled=config is None,
            help="A trial of two steps in a process of its own: how long the run will take, and how much memory.",
            on_click=partial(begin, config) if config else None,
        )
        st.caption("It waits its turn where another run has the device, and outlives this page.")
    if config is None:
        return
    if start:
        _launch(config)
    estimate(config)
    _spelled(config)


def _fields(wrong: dict[str, str]) -> None:
    st.caption(
        f"Teacher **{plain(current().teacher)}**, student **{plain(current().student)}** and their alignment are the sidebar's."
    )
    for column, name in zip(st.columns(len(WEIGHTS)), WEIGHTS, strict=True):
        with column:
            field(name, wrong)
    if "loss_config" in wrong:
        st.caption(f":red[:material/error: {plain(wrong['loss_config'])}]")
    for column, name in zip(st.columns(len(COURSE), vertical_alignment="bottom"), COURSE, strict=True):
        with column:
            field(name, wrong)
    aligner, _ = st.columns([1, 2])
    with aligner:
        field("aligner", wrong)
    with st.expander(
        "Data, schedule, reporting", expanded=any(name in wrong for names in REST for name in names)
    ):
        for column, names in zip(st.columns(len(REST)), REST, strict=True):
            with column:
                for name in names:
                    field(name, wrong)


def _launch(config: DistillConfig) -> None:
    """Look at the data first: what is wrong with them is better said here than by a failed run."""
    try:
        with st.spinner("Reading the examples…", show_time=True):
            load_data(config)
        run = launch.launch(config)
    except DataError as error:
        explain(error.what, error.why, f"{error.do} (Data, under “Data, schedule, reporting”.)")
        return
    except ExplainedError as error:
        explain(error.what, error.why, error.do)
        return
    except OSError as error:
        explain(
            "The run's folder cannot be written.",
            str(error),
            "Set KVVIZ_RUNS to a folder that can be written to, and start kvviz again.",
        )
        return
    update(run=run.name, checkpoint=None, moment=None)
    st.rerun()


def _spelled(config: DistillConfig) -> None:
    """The same run outside the browser."""
    with st.expander("Run it from a shell, on several GPUs or on a cluster", icon=":material/terminal:"):
        left, right = st.columns([1, 2])
        with left:
            st.caption("config.yaml: what differs from the defaults")
            st.code(config.to_yaml(), language="yaml")
            st.download_button(
                "Download config.yaml", config.to_yaml(), "config.yaml", icon=":material/download:"
            )
        with right:
            for line in launch.command_lines("config.yaml"):
                st.caption(plain(line.title))
                st.code(line.command, language="bash", wrap_lines=True)


draw()
