"""A figure in the making.

Plotly checks every entry of a figure, most of them several times, and takes most of a figure's time for it. Here entries go in
unchecked, and the tests check each figure as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvviz.figures.theme import Theme


class Draft:
    """Traces, and the grid of subplots they stand on."""

    def __init__(self, theme: Theme, grid: Mapping[str, Any] | None = None) -> None:
        """grid: the keyword arguments of plotly's `make_subplots`, where the figure has more than one pair of axes."""
        self.theme = theme
        self.traces: list[dict[str, Any]] = []
        self.places: dict[tuple[int, int], dict[str, str]] = {}
        self.grid: dict[str, Any] = {}
        if grid is not None:
            hashable = {name: tuple(v) if isinstance(v, list) else v for name, v in grid.items()}
            self.grid, self.places = _grid(**hashable)

    def add(self, kind: str, place: tuple[int, int] | None = None, **entries: Any) -> None:
        """A trace of a kind ("heatmap", "bar", …), on the subplot at place = (row, col) from (1, 1)."""
        self.traces.append({"type": kind, **entries, **(self.places[place] if place else {})})

    def figure(
        self,
        axes: Mapping[str, Mapping[str, Any]] | None = None,
        titles: Mapping[str, Any] | None = None,
        **layout: Any,
    ) -> go.Figure:
        """The figure in its theme.

        axes: "xaxis", "yaxis2", … → what is added to those of the grid. titles: what is added to the subplots' titles, by
            default the theme's font. layout: all else of the layout; `annotations` join the titles.
        """
        titles = titles or {"font": {"size": 12, "color": self.theme.text}, "yshift": -2}
        written = [title | dict(titles) for title in self.grid.get("annotations", ())]
        written += layout.pop("annotations", ())
        named = {name: self.grid.get(name, {}) | dict(entries) for name, entries in (axes or {}).items()}
        whole = self.grid | named | self.theme.layout(**layout, annotations=written)
        return go.Figure({"data": self.traces, "layout": whole}, _validate=False)


@lru_cache(maxsize=64)
def _grid(**options: Any) -> tuple[dict[str, Any], dict[tuple[int, int], dict[str, str]]]:
    """The layout of a grid of subplots, and the axes of each place."""
    grid = make_subplots(**{name: _listed(value) for name, value in options.items()})
    places = {}
    for row, col in product(range(1, options["rows"] + 1), range(1, options["cols"] + 1)):
        x, y = (axis.plotly_name.replace("axis", "") for axis in grid.get_subplot(row, col))
        places[row, col] = {"xaxis": x, "yaxis": y}
    layout = grid.layout.to_plotly_json()
    layout.pop("template", None)
    return layout, places


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
