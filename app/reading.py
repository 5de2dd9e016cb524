"""What can be shown of a pair and a text before anything is aligned: shapes at every stage, and what the two read."""

from __future__ import annotations

import streamlit as st

from app.charts import chart
from app.text import coloured_tokens, legend
from kvviz.align.aligner import PARTS
from kvviz.config import AlignmentConfig
from kvviz.figures.pipeline import Stage, pipeline
from kvviz.figures.theme import Theme
from kvviz.geometry import Geometry
from kvviz.inspection import Reading
from kvviz.pair import LoadedModel


def what_happens(reading: Reading, config: AlignmentConfig, theme: Theme, key: str) -> None:
    """The pipeline as a picture, with the real shapes."""
    st.subheader("What happens to the cache", anchor=False)
    chart(pipeline(_stages(reading, config), theme=theme), key)


def what_they_read(reading: Reading, teacher: LoadedModel, student: LoadedModel, theme: Theme) -> None:
    """Both texts side by side, coloured by segment."""
    st.subheader("What the two read", anchor=False)
    legend(reading.names, theme)
    sides = (
        ("Teacher", teacher, reading.trace_t, reading.ids_t),
        ("Student", student, reading.trace_s, reading.ids_s),
    )
    for column, (role, model, trace, ids) in zip(st.columns(2), sides, strict=True):
        with column.container(border=True):
            st.caption(f"{role}: {trace.q.shape[3]} tokens of a vocabulary of {len(model.tokenizer):,}")
            coloured_tokens(trace.tokens[0], ids[0].tolist(), reading.names, theme)


def _stages(reading: Reading, config: AlignmentConfig) -> list[Stage]:
    teacher, student = reading.trace_t.geometry, reading.trace_s.geometry
    T_t, T_s = reading.trace_t.q.shape[3], reading.trace_s.q.shape[3]

    def shapes(layers: int, tokens: int, heads: Geometry):
        return {part: (layers, heads.heads_of(part), tokens, heads.dim_of(part)) for part in PARTS}

    return [
        Stage("Teacher", shapes(teacher.layers, T_t, teacher), "captured", "teacher"),
        Stage("Layers", shapes(student.layers, T_t, teacher), config.layer_mapping_strategy),
        Stage("Time", shapes(student.layers, T_s, teacher), config.time_method),
        Stage("Heads and dims", shapes(student.layers, T_s, student), config.kv_projection_mode),
        Stage("Student", shapes(student.layers, T_s, student), "its own cache", "student"),
    ]
