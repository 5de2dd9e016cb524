"""The sidebar: which pair, which text, which alignment."""

from __future__ import annotations

import streamlit as st

from app.controls import choice, dropdown, folded, keyed, switch, value_of
from app.view import SPELLED_LIMIT, View, current, update
from kvviz import bundled

# Segments a person drew belong to one text: another text starts with those found in it.
NO_SEGMENTS = {"segments": "", "student_segments": "", "segment": 0, "segment_side": "teacher"}
NO_STUDENT_SEGMENTS = {"student_segments": "", "segment": 0, "segment_side": "teacher"}


def draw() -> None:
    """Draw the three groups from the view."""
    view = current()
    with st.sidebar:
        _prompt(view)
        _alignment(view)
        _pair(view)


def _prompt(view: View) -> None:
    st.markdown("#### Text")
    choice("source", ("example", "own"), label="What the teacher reads", also=NO_SEGMENTS)
    if view.source == "example":
        examples = bundled.examples()
        st.selectbox(
            "Held-out problem",
            range(len(examples)),
            format_func=lambda index: f"{index + 1}. {examples[index].question[:60]}…",
            help="Neither bundled model saw these problems in training.",
            **keyed("example", view.example, also=NO_SEGMENTS),
        )
    else:
        st.text_area(
            "Text",
            height=160,
            placeholder="Type or paste a text, then press Ctrl+Enter.",
            help="Question, reasoning lines and '#### answer', <think> tags and chat roles are found as segments.",
            **keyed("text", view.text, str, also=NO_SEGMENTS),
        )
    options = ("same", "brief", "own") if view.source == "example" else ("same", "own")
    choice("student_reads", options, label="What the student reads", also=NO_STUDENT_SEGMENTS)
    if view.student_reads == "own":
        st.text_area(
            "The student's own text",
            height=110,
            placeholder="Same question, shorter reasoning, same answer.",
            **keyed("student_text", view.student_text, str, also=NO_STUDENT_SEGMENTS),
        )
    if view.unspelled():
        st.caption(
            f"Texts and segments over {SPELLED_LIMIT:,} characters are kept in this session, not in the address."
        )


def _alignment(view: View) -> None:
    st.markdown("#### Alignment")
    held = view.inspects  # Inside a run its projectors are what they are.
    if held:
        st.caption("The projectors are the run's; what made them is shown here.")
    choice("kv_projection_mode", disabled=held)
    if view.alignment.kv_projection_mode != "identity":
        choice("init", disabled=held)
    if view.alignment.kv_projection_mode == "structured":
        switch("share_dim_proj", disabled=held)
    if view.alignment.kv_projection_mode == "flat":
        # The elastic form has no closed form to fit: it goes with a start, and fitting comes back with the linear one.
        linear = view.alignment.flat_kind == "linear"
        choice("flat_kind", also={"init": "random" if linear else "fitted"}, disabled=held)
    if view.alignment.kv_projection_mode != "identity":
        switch("share_layers", disabled=held)
        switch("offset", disabled=held)
    # The edited matrix is made on the Layers page; here it can only be kept or left.
    strategies = ("uniform", "ratio", "skip", "cka") + (("custom",) if view.alignment.layer_matrix else ())
    dropdown("layer_mapping_strategy", strategies, disabled=held)
    with folded("Key space, time, attention", "sidebar.more") as opened:
        if not opened:
            return
        choice("key_space", disabled=held)
        choice("time_method")
        choice("attention_target")
        if view.alignment.kv_projection_mode != "identity" and view.alignment.init != "fitted":
            st.number_input(
                "Seed",
                min_value=0,
                max_value=2**31 - 1,
                step=1,
                disabled=held,
                **keyed("seed", value_of("seed"), int),
            )


def _pair(view: View) -> None:
    st.markdown("#### Pair")
    held = view.inspects
    for role in ("teacher", "student"):
        with folded(role.capitalize(), f"sidebar.{role}", expanded=not view.bundled and not held) as opened:
            if not opened:
                continue
            st.text_input(
                f"{role.capitalize()}: Hugging Face id or folder",
                max_chars=500,
                help="Only safetensors are loaded, and no code that comes with a model is ever run.",
                disabled=held,
                **keyed(role, getattr(view, role), str),
            )
            st.text_input(
                "Revision",
                max_chars=200,
                placeholder="main",
                disabled=held,
                **keyed(f"{role}_revision", getattr(view, f"{role}_revision"), str),
            )
            dropdown(f"{role}_dtype", label="Dtype (auto: bfloat16 on a GPU, float32 on a CPU)")
            dropdown(f"{role}_device", label="Device (auto: cuda, mps, cpu)")
    if not view.bundled and not held:
        st.button("Back to the bundled pair", on_click=_bundled_pair, width="stretch")


def _bundled_pair() -> None:
    update(teacher="bundled:teacher", student="bundled:student", teacher_revision="", student_revision="")
