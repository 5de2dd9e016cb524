"""Figures on a page, and what a click on them means."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, get_args

import plotly.graph_objects as go
import streamlit as st

from app.components.plotly_figure import plotly_figure
from app.view import Side

if TYPE_CHECKING:  # It brings pandas, which the first picture need not wait for.
    from kvviz.figures.runs import Chart


def chart(figure: go.Figure, key: str) -> None:
    """A figure that only shows."""
    plotly_figure(figure, key)


def curve_chart(curves: Chart, key: str) -> None:
    """Curves that may be drawn again every second: with other data they keep their place and their picture."""
    with st.container(key=key):  # The chart itself carries no key into the page.
        st.vega_lite_chart(curves.data, curves.spec, theme=None, key=f"{key}.chart")


def cell_chart(figure: go.Figure, key: str, picked: Callable[[int, int], None]) -> None:
    """A heatmap of `kvviz.figures.heatmap.cells`; `picked(row, col)` is called before the page runs again."""

    def clicked(_trace: str, data: list[Any]) -> None:
        cell = whole_numbers(data, 2)
        if cell is not None:
            picked(*cell)

    plotly_figure(figure, key, clicked)


def token_chart(
    figure: go.Figure, key: str, picked: Callable[[int], None], maps: Collection[str] = ()
) -> None:
    """A figure whose marks carry `customdata=[position]`; `picked(position)` is called before the page runs again.

    maps: the heatmaps of the figure whose rows are positions, by the names of their traces.
    """

    def clicked(trace: str, data: list[Any]) -> None:
        place = whole_numbers(data, 2 if trace in maps else 1)
        if place is not None:
            picked(place[0])

    plotly_figure(figure, key, clicked)


def side_chart(figure: go.Figure, key: str, picked: Callable[[Side, int], None]) -> None:
    """A figure whose marks carry `customdata=[side, position]`; `picked` is called before the page runs again."""

    def clicked(_trace: str, data: list[Any]) -> None:
        position = whole_numbers(data[1:], 1)
        if position is not None and data[0] in get_args(Side):
            picked(data[0], position[0])

    plotly_figure(figure, key, clicked)


def whole_numbers(data: list[Any], count: int) -> list[int] | None:
    """What the browser sent, as so many whole numbers; None where it is anything else."""
    if len(data) != count or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in data):
        return None
    return [int(one) for one in data] if all(float(one).is_integer() for one in data) else None
