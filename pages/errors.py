"""K/V errors: how far each projected head is from the student's own, down to the token."""

from __future__ import annotations

from functools import partial
from typing import get_args

import streamlit as st
import torch

from app.charts import cell_chart, chart, token_chart
from app.components.canvas_heatmap import canvas_heatmap
from app.controls import keyed, switch
from app.page import Page, open_page
from app.reproduce import reproduce
from app.selection import Selection, select, selection, token_of
from app.view import Metric, update
from kvviz.align.aligner import Part
from kvviz.diagnostics.by_token import TOKEN_MEASURES, by_token
from kvviz.diagnostics.errors import METRICS, token_errors
from kvviz.figures import errors as figures
from kvviz.figures.attention import needs_canvas
from kvviz.figures.canvas import CanvasPanel, quantise
from kvviz.figures.heads import gqa_brackets
from kvviz.figures.heatmap import limits

PARTS: tuple[Part, ...] = ("k", "v", "q")
NAMES = {"relative_error": "Relative error", "cosine": "Cosine", "r2": "R²", "norm_ratio": "Norm ratio"}
COLOURS = {
    "relative_error": "Strong colour is a large error; the scale begins at 0.",
    "cosine": "Strong colour is a low cosine; below 0 takes the strongest.",
    "r2": "Strong colour is a low R²; below 0 takes the strongest.",
    "norm_ratio": "White is equal length; one colour is too short, the other too long.",
}


def draw() -> None:
    page = open_page(
        "K/V errors",
        "How far is every projected head from the student's own, and at which tokens?",
        nothing_selected="Click a cell of a heatmap to open that head: its error under every token, its matrices, its cosines.",
    )
    _controls(page)
    chosen = selection(page.view, page.inspection)
    _maps(page, chosen)
    if chosen is not None:
        _detail(page, chosen)
    reproduce(page)


def _controls(page: Page) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.segmented_control(
            "Measure",
            get_args(Metric),
            format_func=NAMES.__getitem__,
            **keyed("metric", page.view.metric),
        )
        switch("baseline")


def _maps(page: Page, chosen: Selection | None) -> None:
    view, student = page.view, page.inspection.student
    st.caption(f"{NAMES[view.metric]}: {METRICS[view.metric]}. {COLOURS[view.metric]}")
    shown = page.inspection.baseline_errors if view.baseline else page.inspection.errors
    columns = st.columns(2)
    places = {"k": columns[0], "v": columns[1], "q": st.container()}
    for part in PARTS:
        errors, baseline = shown[part], page.inspection.baseline_errors[part]
        with places[part]:
            st.markdown(_total(page, part))
            figure = figures.error_map(
                getattr(errors, view.metric).cpu().numpy(),
                view.metric,
                theme=page.theme,
                part=part,
                selected=(chosen.layer, chosen.head) if chosen and chosen.part == part else None,
                baseline=None if view.baseline else getattr(baseline, view.metric).cpu().numpy(),
                col_brackets=gqa_brackets(student.heads, student.kv_heads) if part == "q" else (),
                width=380 if part != "q" else 700,
            )
            cell_chart(figure, f"errors.{part}", partial(select, part))


def _total(page: Page, part: Part) -> str:
    """The whole part in one line: the aligner's figure beside the identity's."""
    metric = page.view.metric
    now = page.inspection.errors[part].total[metric]
    then = page.inspection.baseline_errors[part].total[metric]
    shown, other = f"**{now:#.3g}**", f"identity {then:#.3g}"
    if page.view.baseline:
        shown, other = f"**{then:#.3g}** (identity)", f"aligner {now:#.3g}"
    return f"**{part.upper()}** {NAMES[metric].lower()} over all heads: {shown} · {other}"


def _detail(page: Page, chosen: Selection) -> None:
    view = page.view
    alignment = page.inspection.baseline if view.baseline else page.inspection.alignment
    valid = alignment.trace_s.attention_mask[0].cpu()
    projected, student = (
        states[chosen.part][0, chosen.layer, chosen.head].cpu()[valid]
        for states in (alignment.aligned, alignment.student)
    )
    tokens = [token for token, kept in zip(alignment.trace_s.tokens[0], valid.tolist(), strict=True) if kept]
    token = token_of(view, len(tokens))
    st.subheader(f"{chosen.part.upper()}, student layer {chosen.layer}, head {chosen.head}", anchor=False)
    _figures(page, chosen)
    measure = TOKEN_MEASURES[view.metric]
    st.markdown(f"**{measure.unit[:1].upper()}{measure.unit[1:]} by token**", help=measure.definition)
    token_chart(
        figures.token_error(
            by_token(projected, student, view.metric).numpy(),
            tokens,
            theme=page.theme,
            unit=measure.unit,
            selected=token,
        ),
        "errors.tokens",
        lambda position: update(token=position),
    )
    _cosines(page, projected, student)
    _matrices(page, chosen, projected, student, tokens, token)


def _figures(page: Page, chosen: Selection) -> None:
    """All four measures of the head, the aligner's beside the identity's."""
    errors = page.inspection.errors[chosen.part]
    baseline = page.inspection.baseline_errors[chosen.part]
    for place, metric in zip(st.columns(4), get_args(Metric), strict=True):
        now, then = (float(getattr(found, metric)[chosen.layer, chosen.head]) for found in (errors, baseline))
        place.metric(
            NAMES[metric],
            f"{now:#.3g}",
            f"identity {then:#.3g}",
            delta_color="off",
            delta_arrow="off",
            help=METRICS[metric],
        )


def _cosines(page: Page, projected: torch.Tensor, student: torch.Tensor) -> None:
    st.markdown("**Cosines of its tokens**", help="cos(projected, student) of every token of this head.")
    cosines = token_errors(projected, student).cosine
    if not cosines.isfinite().any():
        st.caption("The student's vectors of this head are all zero: there is no cosine.")
        return
    chart(figures.cosine_histogram(cosines.numpy(), theme=page.theme), "errors.cosines")


def _matrices(
    page: Page,
    chosen: Selection,
    projected: torch.Tensor,
    student: torch.Tensor,
    tokens: list[str],
    token: int | None,
) -> None:
    space = (
        "before rotation" if page.inspection.key_space == "pre_rope" and chosen.part != "v" else "as cached"
    )
    st.markdown(
        f"**Its entries, {space}**",
        help="The aligned teacher's vectors, the student's own and their difference, on one colour scale.",
    )
    if not needs_canvas(student.numpy()):
        figure = figures.head_matrices(
            projected.numpy(),
            student.numpy(),
            tokens,
            theme=page.theme,
            part=chosen.part,
            selected=token,
            height=min(max(6 * len(tokens), 240), 640),
        )
        names = [trace.name for trace in figure.data]
        token_chart(figure, "errors.matrices", lambda position: update(token=position), maps=names)
        return
    named = {"teacher, projected": projected, "student": student, "difference": projected - student}
    span = limits(torch.stack(list(named.values())).numpy(), "diverging")
    dims = [str(dim) for dim in range(student.shape[1])]
    canvas_heatmap(
        [
            CanvasPanel(name, quantise(values.numpy(), span.low, span.high), tokens, dims)
            for name, values in named.items()
        ],
        low=span.low,
        high=span.high,
        unit=span.title(f"{chosen.part.upper()} entry (one scale)"),
        row_title="student token",
        col_title="head dim",
        key="errors.canvas",
        scale="diverging",
        selected=None if token is None else (0, token, 0),
        on_select=lambda cell: update(token=cell[1]),
    )


draw()
