"""Heatmaps too large for plotly, as a canvas: 1,024² cells redraw in a fraction of a second, every click hits its cell."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from kvviz.figures.canvas import MISSING, Bend, CanvasPanel
from kvviz.figures.heatmap import Scale, colors
from kvviz.figures.labels import visible
from kvviz.figures.theme import DARK, LIGHT, Theme

Cell = tuple[int, int, int]

_HERE = Path(__file__).parent
_COMPONENT = st.components.v2.component(
    "kvviz_canvas_heatmap",
    html=(_HERE / "canvas_heatmap.html").read_text(encoding="utf-8"),
    css=(_HERE / "canvas_heatmap.css").read_text(encoding="utf-8"),
    js=(_HERE / "canvas_heatmap.js").read_text(encoding="utf-8"),
)


def canvas_heatmap(
    panels: Sequence[CanvasPanel],
    *,
    low: float,
    high: float,
    unit: str,
    row_title: str,
    col_title: str,
    key: str,
    bend: Bend = "linear",
    scale: Scale = "sequential",
    selected: Cell | None = None,
    on_select: Callable[[Cell], None] | None = None,
) -> Cell | None:
    """Draws maps side by side on one colour scale and returns the cell that counts as selected.

    Args:
        panels: the maps, quantised between `low` and `high` with `bend` (`kvviz.figures.canvas.quantise`). Maps of one shape
            zoom together and share the crosshair.
        low, high: the ends of the scale in `unit` (plain text, as are the titles and all tokens).
        key: Streamlit's widget key.
        selected: (panel, row, col) to mark, e.g. from the address bar. One that does not exist is not marked.
        on_select: called with the clicked cell before the page runs again.

    Returns the cell clicked just now, otherwise `selected`. Both colour themes are sent; the browser picks by its background.
    """

    def picked() -> None:
        cell = clicked(st.session_state[key].get("picked"), panels)
        if cell is not None and on_select is not None:
            on_select(cell)

    data = payload(
        panels,
        low=low,
        high=high,
        unit=unit,
        row_title=row_title,
        col_title=col_title,
        bend=bend,
        scale=scale,
        selected=selected,
    )
    result = _COMPONENT(key=key, data=data, on_picked_change=picked)
    return clicked(result.picked, panels) or selected


def payload(
    panels: Sequence[CanvasPanel],
    *,
    low: float,
    high: float,
    unit: str,
    row_title: str,
    col_title: str,
    bend: Bend = "linear",
    scale: Scale = "sequential",
    selected: Cell | None = None,
) -> bytes:
    """What the browser gets: the header's length (4 bytes, little endian), the header as JSON, one byte for each cell.

    Raw bytes, since base64 in JSON would be a third larger and float16 goes out as text.
    """
    lists: dict[tuple[str, ...], int] = {}

    def tokens(texts: Sequence[str]) -> int:
        return lists.setdefault(tuple(visible(text, 60) for text in texts), len(lists))

    described = [
        {
            "title": panel.title,
            "rows": panel.levels.shape[0],
            "cols": panel.levels.shape[1],
            "row_tokens": tokens(panel.row_tokens),
            "col_tokens": tokens(panel.col_tokens),
        }
        for panel in panels
    ]
    header = {
        "panels": described,
        "tokens": [list(texts) for texts in lists],
        "low": low,
        "high": high,
        "bend": bend,
        "neutral": {"sequential": 0, "diverging": (MISSING - 1) // 2, "unit": MISSING - 1}[scale],
        "unit": unit,
        "row_title": row_title,
        "col_title": col_title,
        "selected": list(selected) if selected is not None else None,
        "light": _look(LIGHT, scale),
        "dark": _look(DARK, scale),
    }
    text = json.dumps(header).encode()
    levels = b"".join(panel.levels.tobytes() for panel in panels)
    return struct.pack("<I", len(text)) + text + levels


def clicked(sent: Any, panels: Sequence[CanvasPanel]) -> Cell | None:
    """What the browser sent, as (panel, row, col), or None if it is not a cell of these panels."""
    if not isinstance(sent, (list, tuple)) or len(sent) != 3:
        return None
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) or n != n // 1 for n in sent):
        return None
    panel, row, col = (int(n) for n in sent)
    if not 0 <= panel < len(panels):
        return None
    rows, cols = panels[panel].levels.shape
    return (panel, row, col) if 0 <= row < rows and 0 <= col < cols else None


def _look(theme: Theme, scale: Scale) -> dict:
    return {"stops": colors(scale, theme), "missing": theme.missing, "accent": theme.accent}
