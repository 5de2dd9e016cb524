"""A/B matrix: ways to distil compared over several seeds, made as one queue."""

from __future__ import annotations

import streamlit as st

from app.controls import keyed
from app.matrix_form import new_matrix
from app.matrix_watching import follow
from app.page import heading
from app.view import current
from app.words import explain
from kvviz.distill.matrix import Matrix, list_matrices
from kvviz.distill.run import runs_root


def draw() -> None:
    heading("A/B matrix", "Which way to distil is better, by more than chance?")
    found = list_matrices()
    with st.expander("A new matrix", expanded=not found, icon=":material/add:"):
        new_matrix()
    if not found:
        st.info(
            "A matrix trains the same student once for each arm and seed, one run after the other, and sets what they solve "
            "side by side, with intervals: does a structured map beat a flat one, and does any KV loss beat none? "
            "Press **Launch matrix** above; the table fills while runs end, and the queue outlives this page.",
            icon=":material/grid_on:",
        )
    chosen = _chosen(found)
    if chosen is not None:
        follow(chosen)
    st.page_link("../pages/runs.py", label="All runs", icon=":material/list_alt:")


def _chosen(found: list[Matrix]) -> Matrix | None:
    """The view's matrix, else the newest; None where there is none."""
    names = [matrix.name for matrix in found]
    asked = current().matrix
    if asked and asked not in names:
        explain(
            f"The matrix {asked} is gone.",
            f"There is no such matrix in {runs_root()}: it was deleted or moved.",
            "Choose another below." if names else "Launch one above.",
        )
    if not names:
        return None
    name = asked if asked in names else names[0]
    st.selectbox("Matrix", names, **keyed("matrix", name))
    return found[names.index(name)]


draw()
