"""Every figure test that asks for a theme runs on both."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from kvviz.figures.draft import Draft
from kvviz.figures.theme import DARK, LIGHT, Theme


@pytest.fixture(params=[LIGHT, DARK], ids=["light", "dark"])
def theme(request) -> Theme:
    return request.param


@pytest.fixture(autouse=True)
def checked_by_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft's entries go in unchecked: every figure that a test makes is checked here, name by name and value by value."""
    make = Draft.figure

    def checked(draft: Draft, *args, **layout) -> go.Figure:
        figure = make(draft, *args, **layout)
        go.Figure(figure.to_plotly_json())  # raises ValueError
        return figure

    monkeypatch.setattr(Draft, "figure", checked)
