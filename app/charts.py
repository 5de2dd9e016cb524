"""Figures on a page: drawn with one configuration, and what a click on them means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from kvviz.figures.heatmap import clicked_cell
from kvviz.figures.runs import Chart

CONFIG = {"displaylogo": False, "showSendToCloud": False}


def chart(figure: go.Figure, key: str) -> None:
    """A figure that only shows."""
    st.plotly_chart(figure, theme=None, key=key, config=CONFIG)


def curve_chart(curves: Chart, key: str) -> None:
    """Curves that may be drawn again every second: with other data they keep their place and their picture."""
    with st.container(key=key):  # The chart itself carries no key into the page.
        st.vega_lite_chart(curves.data, curves.spec, theme=None, key=f"{key}.chart")


def cell_chart(figure: go.Figure, key: str, picked: Callable[[int, int], None]) -> None:
    """A heatmap of `kvviz.figures.heatmap.cells`; `picked(row, col)` is called before the page runs again."""

    def selected() -> None:
        cell = clicked_cell(_points(key))
        if cell is not None:
            picked(*cell)

    _selectable(figure, key, selected)


def token_chart(figure: go.Figure, key: str, picked: Callable[[int], None]) -> None:
    """A figure whose marks carry `customdata=[position]`; `picked(position)` is called before the page runs again."""

    def selected() -> None:
        position = clicked_position(_points(key))
        if position is not None:
            picked(position)

    _selectable(figure, key, selected)


def clicked_position(points: Sequence[dict]) -> int | None:
    """The position in a selection's first point that has one; what is not a whole number counts as no click."""
    for point in points:
        data = point.get("customdata")
        if isinstance(data, dict):  # some versions of plotly.js send arrays as {"0": …}
            data = [data.get("0")]
        value = data[0] if isinstance(data, (list, tuple)) and data else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
    return None


def _points(key: str) -> list[dict[str, Any]]:
    return st.session_state[key].selection.points


def _selectable(figure: go.Figure, key: str, selected: Callable[[], None]) -> None:
    st.plotly_chart(figure, theme=None, key=key, config=CONFIG, on_select=selected, selection_mode="points")
