"""Attention KL: where the student looks elsewhere than the teacher, by head, by row, by token."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
import streamlit as st
from torch import Tensor

from app.charts import cell_chart, token_chart
from app.components.canvas_heatmap import canvas_heatmap
from app.controls import choice, keyed, switch
from app.page import Page, open_page
from app.reproduce import reproduce
from app.selection import Selection, head_sources, related, select, selection, token_of
from app.view import update
from kvviz.align.aligner import Part
from kvviz.align.heads import uniform_mixer
from kvviz.diagnostics.attention import AttentionDifference, attention_pair, worst_rows
from kvviz.figures import attention as figures
from kvviz.figures.canvas import Bend
from kvviz.figures.heads import gqa_brackets
from kvviz.figures.labels import visible

QUERY: Part = "q"
BENDS = {"linear": "Linear", "sqrt": "Square root", "log": "Logarithm"}


def draw() -> None:
    page = open_page(
        "Attention KL",
        "Where would the student look elsewhere than the aligned teacher does?",
        nothing_selected="Click a cell of the heatmap, or a row of the table, to see that head's three attention maps.",
    )
    target, instead = st.columns([1, 1], vertical_alignment="bottom")
    with target:
        choice("attention_target", place="attention.")
    with instead:
        switch("baseline")
    difference = page.inspection.baseline_attention if page.view.baseline else page.inspection.attention
    chosen = selection(page.view, page.inspection)
    head = None if chosen is None else related(chosen, QUERY, page.inspection.student)[0]
    _explained(page, difference)
    left, right = st.columns([3, 2])
    with left:
        _map(page, difference, chosen, head)
    with right:
        _worst(page, difference)
    if chosen is not None and head is not None:
        _detail(page, difference, chosen, head)
    reproduce(page)


def _explained(page: Page, difference: AttentionDifference) -> None:
    inspection = page.inspection
    target = {
        "projected": "softmax of the aligned queries and keys under the student's mask",
        "mixed": "what the teacher really attended to, averaged over its layers and heads with the maps' |weights| and carried to "
        "student time",
    }[inspection.config.attention_target]
    which = "the identity map" if page.view.baseline else "this aligner"
    other = (
        "" if page.view.baseline else f" The identity map has {inspection.baseline_attention.mean:#.3g} nats."
    )
    outside = ""
    if inspection.config.attention_target == "mixed":
        outside = (
            f" **{difference.outside:.1%} of the target's mass fell outside**: on keys the student may not read, or on teacher "
            "tokens that no student token reads; the rest was renormalised."
        )
    st.markdown(
        f"Mean KL(teacher ‖ student) over all layers, heads and rows, {which}: **{difference.mean:#.3g} nats**.{other}{outside}"
    )
    st.caption(
        f"Teacher's side: {target}. 0 nats: the same pattern. Strong colour is a large KL; the scale begins at 0."
    )


def _map(page: Page, difference: AttentionDifference, chosen: Selection | None, head: int | None) -> None:
    student = page.inspection.student
    # A KV head serves several query heads: all of them are lit, the first is shown.
    group = related(chosen, QUERY, student) if chosen is not None and chosen.part != QUERY else []
    figure = figures.kl_map(
        difference.by_head.cpu().numpy(),
        theme=page.theme,
        selected=None if chosen is None or head is None else (chosen.layer, head),
        baseline=None if page.view.baseline else page.inspection.baseline_attention.by_head.cpu().numpy(),
        col_brackets=gqa_brackets(student.heads, student.kv_heads),
        highlight_cols=group,
        width=440,
    )
    cell_chart(figure, "kl", lambda layer, column: select(QUERY, layer, column))


def _worst(page: Page, difference: AttentionDifference) -> None:
    """The ten rows with the largest KL; a click jumps there."""
    st.markdown(
        "**Worst ten rows**",
        help="The (layer, head, token) whose attention differs most. Click one to go there.",
    )
    tokens = page.reading.trace_s.tokens[0]
    worst = worst_rows(difference)
    table = pd.DataFrame(
        {
            "KL, nats": [value for *_, value in worst],
            "layer": [layer for layer, *_ in worst],
            "head": [head for _, head, *_ in worst],
            "token": [position for *_, position, _ in worst],
            "text": [visible(tokens[position], 40) for *_, position, _ in worst],
        }
    )
    # A new key for each view: a row stays clickable after the view has moved on.
    key = f"worst.{page.view.layer}.{page.view.head}.{page.view.token}"

    def jump() -> None:
        rows = st.session_state[key].selection.rows
        if rows:
            layer, head, position, _ = worst[rows[0]]
            update(part=QUERY, layer=layer, head=head, token=position)

    st.dataframe(
        table,
        key=key,
        on_select=jump,
        selection_mode="single-row",
        hide_index=True,
        width="stretch",
        column_config={"KL, nats": st.column_config.NumberColumn(format="%.3g")},
    )


def _detail(page: Page, difference: AttentionDifference, chosen: Selection, head: int) -> None:
    layer = chosen.layer
    tokens = page.reading.trace_s.tokens[0]
    token = token_of(page.view, len(tokens))
    st.subheader(f"Student layer {layer}, query head {head}", anchor=False)
    if chosen.part != QUERY:
        served = related(chosen, QUERY, page.inspection.student)
        if len(served) > 1:
            st.caption(
                f"{chosen.part.upper()} head {chosen.head} serves query heads {served[0]} to {served[-1]}; "
                f"{head} is shown. Click another in the heatmap."
            )
    kl = difference.rows[layer, head].cpu().numpy()
    facts = (
        ("KL of this head", difference.by_head[layer, head], "Mean over rows, nats."),
        ("Entropy of the target", difference.entropy_teacher[layer, head], "Teacher's side, mean over rows, nats: high is spread out."),
        ("Entropy of the student", difference.entropy_student[layer, head], "Mean over rows, nats: high is spread out."),
    )  # fmt: skip
    for place, (name, value, words) in zip(st.columns(3), facts, strict=True):
        place.metric(name, f"{float(value):#.3g} nats", help=words)
    st.markdown(
        "**KL by token**",
        help="KL of the row in which this token is the query, nats. Click a token to frame its row.",
    )
    token_chart(
        figures.row_kl(kl, tokens, theme=page.theme, selected=token),
        "attention.tokens",
        lambda position: update(token=position),
    )
    _maps(page, layer, head, kl, tokens, token)


def _maps(page: Page, layer: int, head: int, kl: np.ndarray, tokens: list[str], token: int | None) -> None:
    inspection = page.inspection
    alignment = inspection.baseline if page.view.baseline else inspection.alignment
    target, log_student, _ = attention_pair(alignment, layer)
    forbidden = log_student[head].isneginf()
    aligned, own = (
        x[head].masked_fill(forbidden, float("nan")).cpu().numpy() for x in (target, log_student.exp())
    )
    source_layer = int(inspection.layer_matrix[layer].argmax())
    source_head, words = _strongest(page, layer, head)
    true = _teacher_attention(page, source_layer, source_head)
    teacher_tokens = page.reading.trace_t.tokens[0]
    st.markdown("**Attention maps**, rows are queries")
    st.caption(
        f"Teacher: what its layer {source_layer}, head {source_head} truly attended to ({words}, in the teacher layer that "
        "weighs most). Aligned: the target of the KL."
    )
    options: tuple[Bend, ...] = get_args(Bend)
    st.segmented_control(
        "Colours follow probability by",
        options,
        format_func=BENDS.__getitem__,
        help="Attention is peaked: on a linear scale most of a map looks empty. Hover always tells the true value.",
        **keyed("bend", page.view.bend),
    )
    if not figures.needs_canvas(true, own):
        figure = figures.attention_maps(
            true,
            aligned,
            own,
            teacher_tokens,
            tokens,
            kl,
            theme=page.theme,
            bend=page.view.bend,
            selected=token,
        )
        token_chart(
            figure,
            "attention.maps",
            lambda position: update(token=position),
            maps=("teacher, aligned", "student"),
        )
        return
    panels, top = figures.attention_panels(true, aligned, own, teacher_tokens, tokens, bend=page.view.bend)

    def picked(cell: tuple[int, int, int]) -> None:
        panel, row, _ = cell
        if panel > 0:  # Rows of the teacher's own map are teacher tokens.
            update(token=row)

    canvas_heatmap(
        panels,
        low=0.0,
        high=top,
        unit="attention probability",
        row_title="query",
        col_title="key",
        key="attention.canvas",
        bend=page.view.bend,
        selected=None if token is None else (1, token, token),
        on_select=picked,
    )


def _strongest(page: Page, layer: int, head: int) -> tuple[int, str]:
    """The teacher head that feeds a student query head most, and how it was found."""
    sources = head_sources(page.inspection, QUERY, layer, head)
    if not sources:
        nearest = uniform_mixer(page.inspection.student.heads, page.inspection.teacher.heads)[head]
        return int(
            nearest.argmax()
        ), "the one in its place: this projector has no weight by head to choose by"
    source, share = sources[0]
    return source, f"the head's strongest source, {share:.0%} of its weight"


def _teacher_attention(page: Page, layer: int, head: int) -> np.ndarray:
    """The teacher's true attention of one head, `[T_t, T_t]`, NaN where it may not look."""
    trace = page.reading.trace_t
    probabilities: Tensor = trace.attention(layer)[0, head]
    return probabilities.masked_fill(~trace.allowed(layer)[0], float("nan")).cpu().numpy()


draw()
