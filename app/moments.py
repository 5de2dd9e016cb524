"""A run's timeline on a page: one slider over its snapshots, the head mixer and the errors head by head at that step."""

from __future__ import annotations

from typing import get_args

import streamlit as st
from transformers import AutoConfig

from app.charts import chart
from app.controls import keyed
from app.page import theme
from app.view import Metric, current, update
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill.config import DistillConfig
from kvviz.distill.problems import RunGone
from kvviz.distill.run import Run
from kvviz.distill.timeline import Timeline, read_timeline, span_of
from kvviz.figures import timeline as figures
from kvviz.geometry import Geometry, Part
from kvviz.locate import locate

PARTS: tuple[Part, ...] = ("k", "v", "q")
CACHED: tuple[Part, ...] = ("k", "v")
FEW_LAYERS = 8
NAMES = {"relative_error": "Relative error", "cosine": "Cosine", "r2": "R²", "norm_ratio": "Norm ratio"}


def timeline(run: Run) -> None:
    """The slider and what it moves."""
    st.subheader("What changed inside", anchor=False)
    try:
        found, config = read_timeline(run), run.config
    except RunGone as error:
        explain(error.what, error.why, error.do)
        return
    except ConfigError:
        st.caption("The timeline cannot be drawn while the run's configuration, below, cannot be used.")
        return
    if found.unreadable:
        st.caption(f"Snapshots left out, unreadable: steps {', '.join(map(str, found.unreadable))}.")
    if not found.steps:
        st.info("A snapshot is kept at every log; there is none yet.", icon=":material/photo_camera:")
        return
    index = _moment(found)
    part, layer = _controls(found, index)
    left, right = st.columns(2)
    with left:
        _mixer(found, config, index, part, layer)
    with right:
        _attention(found, index)
    for column, compared in zip(st.columns(2), CACHED, strict=True):
        with column:
            _errors(found, index, compared)
    st.caption(
        "Errors and attention KL on a few held-out examples, the same at every step. Each picture's colours span all steps of the "
        "run: a cell that changes colour has changed."
    )


def _moment(found: Timeline) -> int:
    """The snapshot that is looked at."""
    moment = current().moment
    index = len(found.steps) - 1 if moment is None else found.at(moment)
    if len(found.steps) > 1:
        key = "timeline.step"
        st.session_state[key] = found.steps[index]
        st.select_slider(
            "Step",
            found.steps,
            key=key,
            on_change=lambda: update(
                moment=None if st.session_state[key] == found.steps[-1] else st.session_state[key]
            ),
            help="Every log of the run; its end is looked at unless the slider is moved.",
        )
    else:
        st.caption(f"One snapshot so far, of step {found.steps[0]}.")
    return index


def _controls(found: Timeline, index: int) -> tuple[Part, int]:
    """What is looked at: the mixer of which part, at which student layer; by which measure errors are told."""
    whole = found.map("attention_kl", index)
    layers = 1 if whole is None else len(whole)
    layer = min(current().layer, layers - 1)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.segmented_control(
            "Head mixer of",
            PARTS,
            format_func=str.upper,
            **keyed("part", current().part, place="timeline.", also={"head": None, "token": None}),
        )
        shown = keyed("layer", layer, place="timeline.")
        if layers > FEW_LAYERS:
            st.slider("at student layer", 0, layers - 1, width=260, **shown)
        elif layers > 1:
            st.segmented_control("at student layer", range(layers), **shown)
        st.segmented_control(
            "Measure of K and V",
            get_args(Metric),
            format_func=NAMES.__getitem__,
            **keyed("metric", current().metric, place="timeline."),
        )
    return current().part, layer


def _mixer(found: Timeline, config: DistillConfig, index: int, part: Part, layer: int) -> None:
    whole, kl = found.map("k.relative_error", index), found.map("attention_kl", index)
    st.markdown(f"**Head mixer of {part.upper()}**, student layer {layer}")
    kept = found.mixer_step(index)
    if kept is None or whole is None or kl is None:
        st.info("No projectors were kept up to this step.", icon=":material/info:")
        return
    heads = kl.shape[1] if part == "q" else whole.shape[1]
    try:
        teacher_heads = _teacher_heads(config, part) if config.kv_projection_mode == "flat" else None
        weights = found.mixer(part, kept, layer, heads, teacher_heads)
        spanned = span_of(found.mixers(part, layer, heads, teacher_heads))
    except ValueError as error:
        st.info(f"There is no head mixer to draw: {plain(str(error))}.", icon=":material/info:")
        return
    signed = config.kv_projection_mode != "flat"
    chart(
        figures.mixer_at(weights, spanned, theme=theme(), part=part, signed=signed), f"timeline.mixer.{part}"
    )
    if config.aligner == "frozen":
        st.caption(
            "The aligner is frozen: its projectors are those of step 0 throughout; only the student moves."
        )
    else:
        st.caption(f"Projectors of step {kept}.")


def _attention(found: Timeline, index: int) -> None:
    values = found.map("attention_kl", index)
    st.markdown(
        f"**Attention KL**{_mean(values)}",
        help="KL(teacher ‖ student) in nats by student layer and query head; 0 is the teacher's pattern.",
    )
    if values is not None:
        chart(figures.attention_at(values, found.all_of("attention_kl"), theme=theme()), "timeline.attention")


def _errors(found: Timeline, index: int, part: str) -> None:
    metric = current().metric
    name = f"{part}.{metric}"
    values = found.map(name, index)
    st.markdown(f"**{part.upper()}**: {NAMES[metric].lower()}{_mean(values)}")
    if values is not None:
        chart(
            figures.error_at(values, found.all_of(name), metric, theme=theme(), part=part),
            f"timeline.{part}",
        )


def _mean(values) -> str:
    return "" if values is None else f", mean over heads {float(values.mean()):.3g}"


@st.cache_data(show_spinner=False, max_entries=32)
def _geometry(path: str, revision: str | None) -> Geometry:
    """A model's shape from its configuration alone; ValueError where there is none to read."""
    place = locate(path, revision)
    try:
        return Geometry.from_config(
            AutoConfig.from_pretrained(
                place.source,
                trust_remote_code=False,
                revision=revision or "main",
                local_files_only=place.cached or place.folder is not None,
            )
        )
    except OSError as error:
        raise ValueError(f"the teacher's configuration cannot be read ({error})") from error


def _teacher_heads(config: DistillConfig, part: Part) -> int:
    return _geometry(config.teacher, config.teacher_revision).heads_of(part)
