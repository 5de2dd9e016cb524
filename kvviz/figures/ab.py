"""The arms of an A/B matrix side by side: what each solved, and by how much they differ, each with its 95% interval.

Vega-Lite, as the curves of runs are: the charts fill while runs end, and only their data change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvviz.figures.runs import Chart, themed
from kvviz.figures.theme import Theme

if TYPE_CHECKING:
    from kvviz.distill.ab import Interval, Row

ROW_HEIGHT = 48  # An arm's title takes three lines.
MEASURED = "measured, with its 95% interval"
START = "before any step"
EXPECTED = "expected by the v4.0 report, not measured"
AGAINST_FLAT, AGAINST_NONE = "against flat", "against no KV loss"
COLUMNS: dict[str, type] = {"arm": str, "kind": str, "value": float, "low": float, "high": float}


def accuracy_chart(rows: Sequence[Row], *, theme: Theme) -> Chart:
    """Exact match of each arm over its seeds; a dashed line where the student started.

    What the report expects is drawn hollow, with a legend of its own; it shares no mark and no series with what was measured.
    """
    table = [_interval(row.title, MEASURED, row.accuracy) for row in rows if row.accuracy]
    starts = [row.start_accuracy for row in rows if row.start_accuracy is not None]
    if starts:
        table.append(_point("", START, sum(starts) / len(starts)))
    expected = [_point(row.title, EXPECTED, row.expected) for row in rows if row.expected is not None]
    y = {"y": _arms(rows)}
    x = _quantity("exact match, held-out", ".0%", {"domain": [0, 1], "nice": False})
    legend: dict[str, Any] = {"title": None, "orient": "top", "direction": "horizontal"}
    dashed = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": [START], "range": [[5, 4]]},
        "legend": legend | {"symbolStrokeColor": theme.text, "symbolStrokeWidth": 1.5},
    }
    layers: list[dict[str, Any]] = [
        *_whiskers([MEASURED], {MEASURED: theme.student}, x, y, legend, ".1%"),
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
            "mark": {"type": "rule", "color": theme.text, "strokeWidth": 1.5, "opacity": 0.8},
            "encoding": {
                "x": x,
                "strokeDash": dashed,
                "tooltip": [_tip("kind", ""), _tip("value", "exact match", ".1%")],
            },
        },
    ]
    if expected:
        layers.append(_hollow(x, y, legend, theme))
    return _chart(table + expected, layers, rows, theme)


def difference_chart(rows: Sequence[Row], *, theme: Theme) -> Chart:
    """Paired differences of exact match, against the report's baseline and against no KV loss; 0 is no difference."""
    table = []
    for row in rows:
        for kind, found in ((AGAINST_FLAT, row.against_baseline), (AGAINST_NONE, row.against_none)):
            if found is not None:
                points = {name: 100 * getattr(found, name) for name in ("value", "low", "high")}
                table.append({"arm": row.title, "kind": kind} | points)
    colors = {AGAINST_FLAT: theme.teacher, AGAINST_NONE: theme.accent}
    # Never so close that noise looks like a finding; wider where a difference is.
    reach = max([10.0, *(1.05 * abs(row[end]) for row in table for end in ("low", "high"))])
    frame = [_point("", "frame", end) for end in (-reach, reach)]
    x = _quantity("difference of exact match, points", "+.3~g", {"nice": True})
    # The two of an arm lie one under the other.
    side = {"field": "kind", "type": "nominal", "scale": {"domain": list(colors)}}
    y = {"y": _arms(rows), "yOffset": side}
    legend: dict[str, Any] = {"title": None, "orient": "top", "direction": "horizontal"}
    layers: list[dict[str, Any]] = [
        {
            "transform": [_only("frame")],
            "mark": {"type": "point", "opacity": 0},
            "encoding": {"x": x},
        },
        {
            "mark": {"type": "rule", "color": theme.text, "strokeWidth": 1.2},
            "encoding": {"x": {"datum": 0, "type": "quantitative"}},
        },
        *_whiskers(list(colors), colors, x, y, legend, "+.1f"),
    ]
    return _chart(table + frame, layers, rows, theme)


def _whiskers(
    kinds: Sequence[str],
    colors: Mapping[str, str],
    x: dict[str, Any],
    y: dict[str, Any],
    legend: dict[str, Any],
    digits: str,
) -> list[dict[str, Any]]:
    """An interval as a line, its value as a filled dot on it."""
    fill = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": list(colors), "range": list(colors.values())},
        "legend": legend | {"symbolType": "circle", "symbolStrokeWidth": 0},
        "sort": None,
    }
    tips = [
        _tip("arm", "arm"),
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
                "color": fill | {"legend": None},
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


def _hollow(x: dict[str, Any], y: dict[str, Any], legend: dict[str, Any], theme: Theme) -> dict[str, Any]:
    """The report's expectations: hollow diamonds, whose scale and legend are not those of what was measured."""
    shape = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": [EXPECTED], "range": ["diamond"]},
        "legend": legend
        | {"symbolFillColor": "transparent", "symbolStrokeColor": theme.muted, "symbolStrokeWidth": 1.5},
    }
    return {
        "transform": [_only(EXPECTED)],
        "mark": {"type": "point", "filled": False, "size": 90, "strokeWidth": 1.5, "color": theme.muted},
        "encoding": {
            "x": x,
            "shape": shape,
            "tooltip": [_tip("arm", "arm"), _tip("kind", "what"), _tip("value", "share", ".0%")],
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


def _arms(rows: Sequence[Row]) -> dict[str, Any]:
    """The axis of arms, in the order of the matrix; a title in as many lines as it has parts."""
    return {
        "field": "arm",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [row.title for row in rows]},
        "axis": {"labelExpr": "split(datum.label, ', ')", "labelLimit": 260, "grid": True, "domain": False},
    }


def _quantity(title: str, digits: str, scale: dict[str, Any]) -> dict[str, Any]:
    return {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": scale,
        "axis": {"format": digits, "tickCount": 6},
    }


def _interval(arm: str, kind: str, found: Interval) -> dict[str, Any]:
    return {"arm": arm, "kind": kind, "value": found.value, "low": found.low, "high": found.high}


def _point(arm: str, kind: str, value: float) -> dict[str, Any]:
    return {"arm": arm, "kind": kind, "value": value, "low": value, "high": value}


def _only(*kinds: str) -> dict[str, Any]:
    return {"filter": {"field": "kind", "oneOf": list(kinds)}}


def _tip(name: str, title: str, digits: str | None = None) -> dict[str, Any]:
    if digits is None:
        return {"field": name, "type": "nominal", "title": title}
    return {"field": name, "type": "quantitative", "title": title, "format": digits}
