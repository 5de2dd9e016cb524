"""Plotly figures that stay where they are: drawn in place by plotly's own library, those in sight first.

`st.plotly_chart` makes a figure's content part of its identity: each change takes the chart out of the page and builds another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly
import plotly.graph_objects as go
import streamlit as st
from streamlit.components.v1 import declare_component

_HERE = Path(__file__).parent
# The library is a file of the plotly package, served as it is; nothing of the older component interface is drawn.
_LIBRARY = declare_component("plotly", path=Path(plotly.__file__).parent / "package_data")
_COMPONENT = st.components.v2.component(
    "kvviz_plotly_figure",
    html='<div class="kvviz-figure"><div class="plot"></div><div class="failed"></div></div>',
    css=(_HERE / "plotly_figure.css").read_text(encoding="utf-8"),
    js=(_HERE / "plotly_figure.js")
    .read_text(encoding="utf-8")
    .replace("$LIBRARY", f"component/{_LIBRARY.name}/plotly.min.js"),
    isolate_styles=False,  # Plotly's own style sheet belongs to the page.
)


def plotly_figure(
    figure: go.Figure, key: str, clicked: Callable[[str, list[Any]], None] | None = None
) -> None:
    """Draw a figure as wide as its place and as high as its layout says.

    clicked: called, before the page runs again, with the name of the trace under a click and the mark's `customdata` (of a
        heatmap's cell: [row, col]). Both come from the browser: the callee checks them.
    """

    def picked() -> None:
        sent = st.session_state[key].get("clicked")
        if clicked is not None and isinstance(sent, list) and sent:
            clicked(str(sent[0]), sent[1:])

    _COMPONENT(key=key, data=figure.to_json().encode(), on_clicked_change=picked)


def prefetch() -> None:
    """Let the browser load the library while the server is still at work on what comes first."""
    _COMPONENT(key="plotly.library", data=b"")
