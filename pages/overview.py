"""Overview: who the two are, what they read, what the alignment does to it, and how well."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app import resources
from app.charts import chart
from app.page import Page, open_page
from app.reading import what_happens, what_they_read
from app.reproduce import reproduce
from app.writing import teacher_writes
from kvviz import bundled
from kvviz.align.aligner import PARTS, Part
from kvviz.figures.overview import headline

SHOWN: tuple[Part, ...] = ("k", "v")

INSIDE = "the run's"  # Projectors of the run that is looked inside.


def draw() -> None:
    page = open_page(
        "Overview", "How well does the teacher's KV cache fit the student, and what happens on the way?"
    )
    check = _badges(page)
    _headline(page)
    what_happens(page.reading, page.inspection.config, page.theme, "pipeline")
    if check is not None:
        _agreement(page, check)
    what_they_read(page.reading, page.teacher, page.student, page.theme)
    teacher_writes(page)
    _held_out(page)
    _pair(page)
    reproduce(page)


def _badges(page: Page) -> Any | None:
    """How the pair is held; the place of the badge that is filled later, where the first picture would wait for it."""
    with st.container(horizontal=True):
        st.badge(f"key space: {page.inspection.key_space.replace('_', '-')}", color="gray")
        st.badge(
            f"{page.student.device.type}, {str(page.student.dtype).removeprefix('torch.')}", color="gray"
        )
        place = st.empty()  # The last of its row: nothing moves when it gets wider.
    if st.session_state.get("agreement.of") == _compared(page):
        _agreement(page, place)
        return None
    place.badge("comparing with transformers…", icon=":material/hourglass_empty:", color="gray")
    return place


def _compared(page: Page) -> tuple[tuple[str, str, str], ...]:
    """Both models and what each reads."""
    prompt = page.reading.prompt
    read = ((page.teacher, prompt.text), (page.student, prompt.student_text or prompt.text))
    return tuple((model.fingerprint, str(model.device), text) for model, text in read)


def _agreement(page: Page, place: Any) -> None:
    """That the captured queries and keys are the model's own: two eager forwards, when they are first asked for."""
    compared = _compared(page)
    models = (page.teacher, page.student)
    worst = max(resources.agreement(*one, model) for one, model in zip(compared, models, strict=True))
    st.session_state["agreement.of"] = compared
    place.badge(
        f"matches transformers within {worst:.1e}",
        icon=":material/verified:",
        color="green" if worst < 1e-3 else "orange",
        help="Largest difference between attention recomputed from the captured q, k, scaling and mask and "
        "transformers' own eager attention, over both models, all layers and heads, on at most 512 tokens of this text.",
    )


def _headline(page: Page) -> None:
    inspection = page.inspection
    errors, baseline = inspection.errors, inspection.baseline_errors
    columns = st.columns(4)
    for column, part in zip(columns, SHOWN, strict=False):
        _against_identity(
            column,
            f"{part.upper()} relative error",
            errors[part].total["relative_error"],
            baseline[part].total["relative_error"],
            "‖projected − student‖² / ‖student‖² on this text, all layers, heads and tokens; 0 is perfect. ",
        )
    _against_identity(
        columns[2],
        "Attention KL, nats",
        inspection.attention.mean,
        inspection.baseline_attention.mean,
        "KL(aligned teacher ‖ student), causal, mean over layers, heads and rows of this text. ",
    )
    columns[3].metric(
        "Aligner parameters",
        f"{inspection.aligner.parameter_count():,}",
        f"T_t {page.reading.trace_t.q.shape[3]} → T_s {page.reading.trace_s.q.shape[3]} tokens",
        delta_color="off",
        delta_arrow="off",
        border=True,
        help="Trainable numbers in the head mixers, dim projections and offsets of Q, K and V.",
    )


def _against_identity(place: Any, name: str, now: float, then: float, words: str) -> None:
    """A figure of which less is better, and what the identity has in its place: green where the aligner beats it."""
    place.metric(
        name,
        _shown(now),
        f"identity {_shown(then)}",
        delta_color="green" if now < then else "gray" if now == then else "red",
        delta_arrow="off",
        border=True,
        help=words + "Below it the identity map's: group means over heads, no parameters.",
    )


def _shown(value: float) -> str:
    """Three decimals, or three digits of what is smaller; what rounding alone left of zero is zero."""
    if not math.isfinite(value):
        return "no value"
    return f"{value:z.3f}" if abs(value) >= 0.1 or abs(value) < 1e-6 else f"{value:#.3g}"


def _held_out(page: Page) -> None:
    st.subheader("How much of the student a map explains, on texts nobody fitted to", anchor=False)
    if page.inspection.calibration is None:
        st.info("Calibrate this pair (above) to compare the maps on held-out texts.", icon=":material/info:")
        return
    arms: dict[str, dict[str, Any]] = {
        "flat, fitted": {"kv_projection_mode": "flat", "init": "fitted", "flat_kind": "linear"},
        "per head, fitted": {"kv_projection_mode": "structured", "init": "fitted", "share_dim_proj": False},
        "structured, fitted": {"kv_projection_mode": "structured", "init": "fitted", "share_dim_proj": True},
        "shared over layers, fitted": {
            "kv_projection_mode": "structured",
            "init": "fitted",
            "share_dim_proj": True,
            "share_layers": True,
        },
        "uniform start": {"kv_projection_mode": "structured", "init": "uniform", "share_dim_proj": True},
        "random start": {"kv_projection_mode": "structured", "init": "random", "share_dim_proj": True},
        "identity": {"kv_projection_mode": "identity"},
    }
    values: dict[str, dict[str, float]] = {"K": {}, "V": {}, "Q": {}}
    for arm, changes in arms.items():
        report = page.inspection.held_out(**({"share_layers": False} | changes))
        for part in PARTS:
            values[part.upper()][arm] = math.nan if report is None else report.scores[part].total_r2
    own = page.inspection.fit_report if page.view.inspects else None
    if own is not None:
        for part in PARTS:
            values[part.upper()] = {INSIDE: own.scores[part].total_r2} | values[part.upper()]
    chosen = INSIDE if own is not None else None if page.view.inspects else _chosen(page)
    chart(headline(values, theme=page.theme, chosen=chosen), "held-out")
    st.caption(
        "R² = 1 − residual / variance, all layers and heads; 1 is perfect, 0 is no better than the student's mean, below 0 is "
        "worse than that. Each map is fitted on one set of texts, its regulariser chosen on a second, this figure read on a third."
    )


def _chosen(page: Page) -> str | None:
    """The bar that stands for the configuration at hand, where one does."""
    config = page.inspection.config
    if config.kv_projection_mode == "identity":
        return "identity"
    if config.kv_projection_mode == "flat":
        return "flat, fitted" if config.init == "fitted" and not config.share_layers else None
    if config.init != "fitted":
        return f"{config.init} start" if config.share_dim_proj and not config.share_layers else None
    if config.share_layers:
        return "shared over layers, fitted" if config.share_dim_proj else None
    return "structured, fitted" if config.share_dim_proj else "per head, fitted"


def _pair(page: Page) -> None:
    st.subheader("The pair", anchor=False)
    card = bundled.card() if page.view.bundled else {}
    rows = {}
    for role, model in (("Teacher", page.teacher), ("Student", page.student)):
        geometry = model.geometry
        match = card.get(role.lower(), {}).get("exact_match")
        rows[role] = {
            "model": model.name,
            "parameters": f"{model.parameters:,}",
            "layers": f"{geometry.layers}",
            "query heads": f"{geometry.heads}",
            "KV heads": f"{geometry.kv_heads}",
            "head dim": f"{geometry.head_dim}",
            "RoPE theta": "none" if geometry.rope_theta is None else f"{geometry.rope_theta:,.0f}",
            "vocabulary": f"{len(model.tokenizer):,}",
            "context": f"{model.context:,} tokens",
        }
        if card:
            rows[role]["held-out exact match"] = (
                f"{match['share']:.1%} ({match['low']:.1%} to {match['high']:.1%}, n = {match['n']})"
                if match
                else "—"
            )
    st.dataframe(rows, width="stretch")
    notes = [f"{model.name}: {model.rope_note}" for model in (page.teacher, page.student) if model.rope_note]
    for note in notes:
        st.caption(f"Keys are not un-rotated: {note}")


draw()
