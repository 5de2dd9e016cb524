"""The arms of an A/B matrix side by side: what each solved, and by how much they differ, each with its 95% interval.

Vega-Lite, as the curves of runs are: the charts fill while runs end, and only their data change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvviz.figures.runs import Chart, themed
from kvviz.figures.theme import Theme

if TYPE_CHECKING:
    from kvviz.distill.ab import Interval, Row

ROW_HEIGHT = 42
SHARED = ", trained along"  # What the report's arms have in common is left out beside their rows, and stands in the tooltip.
MEASURED = "measured, with its 95% interval"
START = "before any step"
EXPECTED = "expected by the v4.0 report, not measured"
AGAINST_FLAT, AGAINST_NONE = "against flat", "against no KV loss"
COLUMNS: dict[str, type] = {
    "arm": str,
    "title": str,
    "kind": str,
    "value": float,
    "low": float,
    "high": float,
}

# A legend's entries: mark, colour, words. Vega-Lite would make one legend of several marks, and cut it off where it is long.
Legend = list[tuple[str, str, str]]


def accuracy_legend(rows: Sequence[Row], theme: Theme) -> Legend:
    """Of `accuracy_chart`; what the report expects is named only where it expects something."""
    entries = [("●", theme.student, MEASURED), ("┆", theme.text, START)]
    expected = any(row.expected is not None for row in rows)
    return entries + [("◇", theme.muted, EXPECTED)] if expected else entries


def difference_legend(theme: Theme) -> Legend:
    """Of `difference_chart`."""
    return [("●", color, kind) for kind, color in _against(theme).items()]


def accuracy_chart(rows: Sequence[Row], *, theme: Theme) -> Chart:
    """Exact match of each arm over its seeds; a dashed line where the student started.

    What the report expects is drawn hollow, under a name of its own; it shares no mark and no series with what was measured.
    """
    table = [_interval(row, MEASURED, row.accuracy) for row in rows if row.accuracy]
    starts = [row.start_accuracy for row in rows if row.start_accuracy is not None]
    if starts:
        table.append(_point(None, START, sum(starts) / len(starts)))
    expected = [_point(row, EXPECTED, row.expected) for row in rows if row.expected is not None]
    y = {"y": _arms(rows)}
    x = _quantity("exact match, held-out", ".0%", {"domain": [0, 1], "nice": False})
    layers: list[dict[str, Any]] = [
        *_whiskers([MEASURED], {MEASURED: theme.student}, x, y, ".1%"),
        {
            "transform": [_only(MEASURED)],
            "mark": {"type": "text", "dy": -12, "fontSize": 11, "color": theme.text},
            "encoding": {
                "x": x,
                "text": {"field": "value", "type": "quantitative", "format": ".1%"},
            }
            | y,
        },
        {
            "transform": [_only(START)],
            "mark": {"type": "rule", "color": theme.text, "strokeWidth": 1.5, "strokeDash": [5, 4]},
            "encoding": {
                "x": x,
                "tooltip": [_tip("kind", ""), _tip("value", "exact match", ".1%")],
            },
        },
    ]
    if expected:
        layers.append(_hollow(x, y, theme))
    return _chart(table + expected, layers, rows, theme)


def difference_chart(rows: Sequence[Row], *, theme: Theme) -> Chart:
    """Paired differences of exact match, against the report's baseline and against no KV loss; 0 is no difference."""
    table = []
    for row in rows:
        for kind, found in ((AGAINST_FLAT, row.against_baseline), (AGAINST_NONE, row.against_none)):
            if found is not None:
                points = {name: 100 * getattr(found, name) for name in ("value", "low", "high")}
                table.append({"arm": _label(row), "title": row.title, "kind": kind} | points)
    colors = _against(theme)
    # Never so close that noise looks like a finding; wider, by tens, where a difference is.
    farthest = max((abs(row[end]) for row in table for end in ("low", "high")), default=0)
    reach = 10 * max(math.ceil(farthest / 10), 1)
    x = _quantity("difference of exact match, points", "+.3~g", {"domain": [-reach, reach], "nice": False})
    # The two of an arm lie one under the other.
    side = {"field": "kind", "type": "nominal", "scale": {"domain": list(colors)}}
    y = {"y": _arms(rows), "yOffset": side}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "color": theme.text, "strokeWidth": 1.2},
            "encoding": {"x": {"datum": 0, "type": "quantitative"}},
        },
        *_whiskers(list(colors), colors, x, y, "+.1f"),
    ]
    return _chart(table, layers, rows, theme)


def _against(theme: Theme) -> dict[str, str]:
    return {AGAINST_FLAT: theme.teacher, AGAINST_NONE: theme.accent}


def _whiskers(
    kinds: Sequence[str],
    colors: Mapping[str, str],
    x: dict[str, Any],
    y: dict[str, Any],
    digits: str,
) -> list[dict[str, Any]]:
    """An interval as a line, its value as a filled dot on it."""
    fill = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": list(colors), "range": list(colors.values())},
        "legend": None,
        "sort": None,
    }
    tips = [
        _tip("title", "arm"),
        _tip("kind", "what"),
        _tip("value", "value", digits),
        _tip("low", "95% from", digits),
        _tip("high", "to", digits),
    ]
    line = {"type": "rule", "strokeWidth": 2.5}
    return [
        {
            "transform": [_only(*kinds)],
            "mark": line,
            "encoding": {
                "x": x | {"field": "low"},
                "x2": {"field": "high"},
                "color": fill,
                "tooltip": tips,
            }
            | y,
        },
        {
            "transform": [_only(*kinds)],
            "mark": {"type": "circle", "size": 110, "opacity": 1},
            "encoding": {"x": x, "color": fill, "tooltip": tips} | y,
        },
    ]


def _hollow(x: dict[str, Any], y: dict[str, Any], theme: Theme) -> dict[str, Any]:
    """The report's expectations: hollow diamonds in no scale of colours."""
    return {
        "transform": [_only(EXPECTED)],
        "mark": {
            "type": "point",
            "shape": "diamond",
            "filled": False,
            "size": 90,
            "strokeWidth": 1.5,
            "color": theme.muted,
        },
        "encoding": {
            "x": x,
            "tooltip": [_tip("title", "arm"), _tip("kind", "what"), _tip("value", "share", ".0%")],
        }
        | y,
    }


def _chart(
    table: Sequence[Mapping[str, Any]], layers: list[dict[str, Any]], rows: Sequence[Row], theme: Theme
) -> Chart:
    data = pd.DataFrame(table, columns=list(COLUMNS)).astype(COLUMNS)
    return Chart(
        {"height": ROW_HEIGHT * max(len(rows), 1), "layer": layers, "config": themed(theme)},
        data,
    )


def _label(row: Row | None) -> str:
    return row.title.removesuffix(SHARED) if row else ""


def _arms(rows: Sequence[Row]) -> dict[str, Any]:
    """The axis of arms, in the order of the matrix."""
    return {
        "field": "arm",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [_label(row) for row in rows]},
        "axis": {"labelLimit": 260, "grid": True, "domain": False},
    }


def _quantity(title: str, digits: str, scale: dict[str, Any]) -> dict[str, Any]:
    return {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": scale,
        "axis": {"format": digits, "tickCount": 6},
    }


def _interval(row: Row, kind: str, found: Interval) -> dict[str, Any]:
    return _point(row, kind, found.value) | {"low": found.low, "high": found.high}


def _point(row: Row | None, kind: str, value: float) -> dict[str, Any]:
    """A row of a chart's table; row: None where it belongs to no arm."""
    title = row.title if row else ""
    return {"arm": _label(row), "title": title, "kind": kind, "value": value, "low": value, "high": value}


def _only(*kinds: str) -> dict[str, Any]:
    return {"filter": {"field": "kind", "oneOf": list(kinds)}}


def _tip(name: str, title: str, digits: str | None = None) -> dict[str, Any]:
    if digits is None:
        return {"field": name, "type": "nominal", "title": title}
    return {"field": name, "type": "quantitative", "title": title, "format": digits}
