"""Layers: which teacher layers each student layer reads, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import streamlit as st

from app.charts import cell_chart, chart, token_chart
from app.controls import choice, keyed
from app.page import Page, open_page
from app.reproduce import reproduce
from app.view import current, update
from kvviz.align.aligner import PARTS, Part
from kvviz.align.layers import OVERLOAD, overloaded, unmapped, with_weight
from kvviz.figures import layers as figures
from kvviz.figures.heatmap import cells
from kvviz.figures.overview import headline

SHOWN: tuple[Part, ...] = ("k", "v")  # Parts whose error the page shows.
MOST_NAMED = 12  # Teacher layers named one by one in a sentence.


def draw() -> None:
    page = open_page("Layers", "Which teacher layers does each student layer read, and what does that cost?")
    matrix = page.inspection.layer_matrix
    row = min(page.view.layer, matrix.shape[0] - 1)
    col = min(page.view.teacher_layer, matrix.shape[1] - 1)
    choice("layer_mapping_strategy", _strategies(page), place="layers.")
    left, right = st.columns([5, 3], gap="medium")
    with left:
        st.subheader("The layer map", anchor=False)
        _map(page, row, col)
        st.subheader("Error at each student layer", anchor=False)
        _errors(page, row)
    with right:
        _edit(page, row, col)
    st.subheader("Which layers are alike", anchor=False)
    _similarity(page, row, col)
    st.subheader("What sharing one map over layers costs", anchor=False)
    _sharing(page)
    reproduce(page)


def _strategies(page: Page) -> tuple[str, ...]:
    return ("uniform", "ratio", "skip", "cka") + (("custom",) if page.view.alignment.layer_matrix else ())


def _map(page: Page, row: int, col: int) -> None:
    matrix = page.inspection.layer_matrix
    figure = figures.layer_map(
        matrix.numpy(),
        theme=page.theme,
        selected=(row, col),
        unmapped=unmapped(matrix),
        overloaded=overloaded(matrix),
        width=520,
    )
    cell_chart(figure, "layers.map", _pick)
    st.caption(f"{_balance(page)} Click a cell to edit its weight.")


def _balance(page: Page) -> str:
    """Unread and overloaded teacher layers in words."""
    matrix = page.inspection.layer_matrix
    share = matrix.shape[0] / matrix.shape[1]
    unread, heavy = unmapped(matrix), overloaded(matrix)
    sentences = []
    if unread:
        sentences.append(f"∅ No student layer reads teacher {_layers(unread)}.")
    if heavy:
        sums = matrix.sum(dim=0)
        most = max(heavy, key=lambda layer: float(sums[layer]))
        sentences.append(
            f"▲ Teacher {_layers(heavy)} {'is' if len(heavy) == 1 else 'are'} read more than {OVERLOAD:g} times as much as "
            f"even reading would ({share:.2f} of a student layer each); most of all layer {most}, with {float(sums[most]):.2f}."
        )
    if not sentences:
        return f"Every teacher layer is read, and none more than {OVERLOAD:g} times its even share."
    return " ".join(sentences)


def _layers(layers: Sequence[int]) -> str:
    named = ", ".join(str(layer) for layer in layers[:MOST_NAMED])
    more = f" and {len(layers) - MOST_NAMED} more" if len(layers) > MOST_NAMED else ""
    return f"layer{'' if len(layers) == 1 else 's'} {named}{more}"


def _edit(page: Page, row: int, col: int) -> None:
    """One cell's weight; the rest of its row follows, and with it every figure."""
    matrix = page.inspection.layer_matrix
    st.subheader("Edit a weight", anchor=False)
    first, second = st.columns(2)
    first.selectbox("Student layer", range(matrix.shape[0]), **keyed("layer", row, place="layers."))
    second.selectbox("Teacher layer", range(matrix.shape[1]), **keyed("teacher_layer", col, place="layers."))
    key = "layers.weight"
    st.session_state[key] = min(max(float(matrix[row, col]), 0.0), 1.0)

    def weigh() -> None:
        edited = with_weight(matrix, row, col, st.session_state[key])
        update(
            layer_mapping_strategy="custom",
            layer_matrix=edited.tolist(),
            layer=row,
            teacher_layer=col,
        )

    st.slider(
        "Weight",
        0.0,
        1.0,
        step=0.01,
        key=key,
        on_change=weigh,
        disabled=matrix.shape[1] == 1,
        help="What the selected student layer takes from the selected teacher layer. The other weights of its row are "
        "rescaled so that the row sums to 1; where they are all 0 the rest goes to the neighbouring teacher layers.",
    )
    st.caption(_row_in_words(page, row))
    custom = current().alignment.layer_mapping_strategy == "custom"
    st.button(
        "Reset to uniform",
        icon=":material/restart_alt:",
        on_click=lambda: update(layer_mapping_strategy="uniform", layer_matrix=None),
        disabled=not custom and current().alignment.layer_matrix is None,
        help="Forgets the edited map.",
    )
    for column, part in zip(st.columns(2), SHOWN, strict=True):
        now = float(page.inspection.errors[part].by_layer["relative_error"][row])
        then = float(page.inspection.baseline_errors[part].by_layer["relative_error"][row])
        column.metric(
            f"{part.upper()} error",
            _shown(now),
            f"{now - then:+.3f}" if math.isfinite(now - then) else None,
            delta_color="inverse",
            border=True,
            help="‖projected − student‖² / ‖student‖² at the selected student layer, on this text; 0 is perfect. Below it the "
            "difference from the identity under the same layer map.",
        )
    st.caption(f"Relative error at student layer {row}, and its difference from the identity.")


def _row_in_words(page: Page, row: int) -> str:
    weights = page.inspection.layer_matrix[row]
    read = weights.argsort(descending=True, stable=True)[: int((weights > 0).sum())].tolist()
    parts = [f"{layer} ({float(weights[layer]):.0%})" for layer in read[:MOST_NAMED]]
    more = f" and {len(read) - MOST_NAMED} more" if len(read) > MOST_NAMED else ""
    return f"Student layer {row} reads teacher layer{'' if len(read) == 1 else 's'} {', '.join(parts)}{more}."


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "no value"


def _errors(page: Page, row: int) -> None:
    errors, baseline = page.inspection.errors, page.inspection.baseline_errors
    figure = figures.per_layer_error(
        {part.upper(): errors[part].by_layer["relative_error"].cpu().numpy() for part in SHOWN},
        {part.upper(): baseline[part].by_layer["relative_error"].cpu().numpy() for part in SHOWN},
        theme=page.theme,
        selected=row,
    )
    token_chart(figure, "layers.errors", lambda layer: update(layer=layer))
    st.caption(
        "Bars: ‖projected − student‖² / ‖student‖² on this text, over heads and tokens; 0 is perfect. Lines: the identity under "
        "the same layer map, that is the same teacher layers without a projector. Click a bar to select its layer."
    )


def _pick(row: int, col: int) -> None:
    update(layer=row, teacher_layer=col)


def _similarity(page: Page, row: int, col: int) -> None:
    similarity = page.inspection.similarity.numpy()
    figure = cells(
        similarity,
        row_title="student layer",
        col_title="teacher layer",
        unit="linear CKA of keys (0 to 1)",
        theme=page.theme,
        selected=(row, col),
        clip=False,
        width=520,
    )
    left, right = st.columns([5, 3], gap="medium")
    with left:
        cell_chart(figure, "layers.similarity", _pick)
    most = similarity.argmax(axis=1).tolist()
    right.caption(
        "Linear CKA (Kornblith et al. 2019) of both models' keys on this text, after the time warp; 1 means equal up to rotation and "
        f"scale. Most alike for student layers 0 to {len(most) - 1}: teacher layers {', '.join(map(str, most))}. The strategy cka "
        "reads the two most alike. A text of few tokens makes all layers look alike."
    )


def _sharing(page: Page) -> None:
    """Held-out R² of one map for each layer and of one for all of them, both fitted."""
    config = page.inspection.config
    if page.inspection.calibration is None:
        st.info("Calibrate this pair (above) to see it on held-out texts.", icon=":material/info:")
        return
    # Only a fitted map pays for sharing; where none is on the page, the structured one stands in.
    mode = "structured" if config.kv_projection_mode == "identity" else config.kv_projection_mode
    fitted = {"kv_projection_mode": mode, "init": "fitted", "flat_kind": "linear"}
    arms = {"one for each layer": False, "one for all layers": True}
    values: dict[str, dict[str, float]] = {"K": {}, "V": {}, "Q": {}}
    for arm, share in arms.items():
        report = page.inspection.held_out(**fitted, share_layers=share)
        for part in PARTS:
            values[part.upper()][arm] = math.nan if report is None else report.scores[part].total_r2
    chart(headline(values, theme=page.theme, chosen=list(arms)[config.share_layers]), "layers.sharing")
    each, one = arms
    losses = ", ".join(f"{part} {_shown(row[each] - row[one])}" for part, row in values.items())
    st.caption(
        f"R² of fitted {mode} maps on texts nobody fitted to; 1 is perfect. One map for all layers, as in the v4.0 report, "
        f"loses {losses}: layers share no basis."
    )


draw()
