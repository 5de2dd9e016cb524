"""Curves of distillation runs over their steps, as Vega-Lite charts.

Not plotly: these are redrawn while a run goes on, and a chart whose data alone change keeps its picture. So nothing in a
chart but its data may depend on how far the run is. Written out and not built by altair, which checks every entry: ten
charts took it a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from kvviz.distill.metrics import Compared
from kvviz.figures.theme import FONT_FAMILY, Theme

Row = Mapping[str, Any]
Role = Literal["training", "held-out", "k", "v"]

HEIGHT = 190
MOST_POINTS = 600  # of one curve: more than a chart has pixels
MOST_DOTS = 40  # of one curve: more of them hide it


@dataclass(frozen=True, eq=False)
class Chart:
    """A Vega-Lite specification, and the one table it draws: step, value, low, high, name, kind."""

    spec: dict[str, Any]
    data: pd.DataFrame


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name in the legend, its metric, whose colour it takes, its interval's two metrics."""

    name: str
    metric: str
    role: Role = "training"
    band: tuple[str, str] | None = None


@dataclass(frozen=True)
class Panel:
    """One chart of a run.

    Attributes:
        title: above it. unit: of its y axis. definition: what its numbers mean, for a tooltip.
        half: whether half of each curve's first value is drawn, dashed. span: of the y axis, where it is known.
    """

    key: str
    title: str
    unit: str
    definition: str
    curves: tuple[Curve, ...]
    half: bool = False
    span: tuple[float, float] | None = None
    digits: str = ".3~g"
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(curve.metric for curve in self.curves))


def _both(metric: str) -> tuple[Curve, ...]:
    return (Curve("training", metric), Curve("held-out", f"eval_{metric}", "held-out"))


PANELS: tuple[Panel, ...] = (
    Panel(
        "loss",
        "Total loss",
        "weighted sum",
        "The terms below, each times its weight. Held-out: on examples that are never trained on.",
        _both("loss"),
    ),
    Panel(
        "ce_loss",
        "Cross-entropy",
        "nats a token",
        "Of the reasoning and the answer, by the student.",
        _both("ce_loss"),
    ),
    Panel(
        "kd_loss",
        "Logit KD",
        "nats a token",
        "KL(teacher ‖ student) of next-token probabilities.",
        _both("kd_loss"),
    ),
    Panel(
        "k_loss",
        "K",
        "1 − cosine",
        "Between the student's keys and the aligned teacher's; 0 is the same direction.",
        _both("k_loss"),
    ),
    Panel(
        "v_loss",
        "V",
        "1 − cosine",
        "Between the student's values and the aligned teacher's; 0 is the same direction.",
        _both("v_loss"),
    ),
    Panel(
        "attn_loss",
        "Attention KL",
        "nats a row",
        "KL(teacher ‖ student) of causal attention, averaged over layers, heads and rows.",
        _both("attn_loss"),
    ),
    Panel(
        "accuracy",
        "Exact match",
        "share right",
        "Held-out problems answered right by greedy decoding, with Wilson's 95% interval.",
        (Curve("exact match", "accuracy", "held-out", ("accuracy_low", "accuracy_high")),),
        span=(0.0, 1.0),
        digits=".0%",
    ),
    Panel(
        "spread",
        "Spread of K and V",
        "standard deviation",
        "Over positions, of each channel of the student, averaged over channels, held-out. Below half of its start (dashed) the "
        "student's cache is collapsing: a small cache has a small loss.",
        (Curve("K", "k_spread", "k"), Curve("V", "v_spread", "v")),
        half=True,
    ),
    Panel(
        "r2",
        "Held-out R² of K and V",
        "R²",
        "1 − residual / variance of the aligned teacher against the student, all layers and heads; 1 is perfect.",
        (Curve("K", "k_r2", "k"), Curve("V", "v_r2", "v")),
    ),
    Panel(
        "learning_rate",
        "Learning rate",
        "of AdamW",
        "After warm-up it follows the schedule.",
        (Curve("learning rate", "learning_rate"),),
        digits=".1~e",
    ),
)
BY_KEY = {panel.key: panel for panel in PANELS}

# What several runs can be compared by, one curve each: its name, its unit, the metrics of its interval.
COMPARED: dict[Compared, tuple[str, str, tuple[str, str] | None]] = {
    "accuracy": ("Exact match, held-out", "share right", ("accuracy_low", "accuracy_high")),
    "loss": ("Total loss, training", "weighted sum", None),
    "eval_loss": ("Total loss, held-out", "weighted sum", None),
    "ce_loss": ("Cross-entropy, training", "nats a token", None),
    "eval_ce_loss": ("Cross-entropy, held-out", "nats a token", None),
    "kd_loss": ("Logit KD, training", "nats a token", None),
    "k_loss": ("K, training", "1 − cosine", None),
    "eval_k_loss": ("K, held-out", "1 − cosine", None),
    "v_loss": ("V, training", "1 − cosine", None),
    "eval_v_loss": ("V, held-out", "1 − cosine", None),
    "attn_loss": ("Attention KL, training", "nats a row", None),
    "eval_attn_loss": ("Attention KL, held-out", "nats a row", None),
    "k_r2": ("R² of K, held-out", "R²", None),
    "v_r2": ("R² of V, held-out", "R²", None),
    "k_spread": ("Spread of K, held-out", "standard deviation", None),
    "v_spread": ("Spread of V, held-out", "standard deviation", None),
    "learning_rate": ("Learning rate", "of AdamW", None),
    "grad_norm": ("Norm of the gradient", "before clipping", None),
}


def panel_chart(
    panel: Panel, rows: Sequence[Row], steps: int, *, theme: Theme, height: int = HEIGHT
) -> Chart:
    """A panel of one run, whose x axis spans all its planned steps; drawn empty while there are no points."""
    colors = {"training": theme.teacher, "held-out": theme.student, "k": theme.key, "v": theme.value}
    series = {curve.name: points(rows, curve.metric, curve.band) for curve in panel.curves}
    halves = {name: found[0][1] / 2 for name, found in series.items() if panel.half and found}
    return _chart(
        series,
        {curve.name: colors[curve.role] for curve in panel.curves},
        unit=panel.unit,
        steps=steps,
        theme=theme,
        height=height,
        span=panel.span,
        digits=panel.digits,
        levels=halves if panel.half else None,
        level_words="half of the start",
        banded=any(curve.band for curve in panel.curves),
    )


def overlay(
    runs: Mapping[str, Sequence[Row]], metric: Compared, steps: int, *, theme: Theme, height: int = 340
) -> Chart:
    """One metric of `COMPARED` of several runs, by name, on one axis of steps; a colour a run, in the order given."""
    _, unit, band = COMPARED[metric]
    return _chart(
        {name: points(rows, metric, band) for name, rows in runs.items()},
        {name: theme.segment(index) for index, name in enumerate(runs)},
        unit=unit,
        steps=steps,
        theme=theme,
        height=height,
        span=(0.0, 1.0) if band else None,
        digits=".0%" if band else ".3~g",
        banded=band is not None,
        always_legend=True,
    )


def points(
    rows: Sequence[Row], metric: str, band: tuple[str, str] | None = None
) -> list[tuple[int, float, float, float]]:
    """(step, value, low, high) of the rows that hold a metric; thinned evenly, the first and the last always kept."""
    found = [row for row in rows if _is_number(row.get(metric))]
    if len(found) > MOST_POINTS:
        every = (len(found) - 1) / (MOST_POINTS - 1)
        found = [found[round(index * every)] for index in range(MOST_POINTS)]
    low, high = band or (metric, metric)
    return [(row["step"], row[metric], _or_nan(row.get(low)), _or_nan(row.get(high))) for row in found]


def _chart(
    series: Mapping[str, Sequence[tuple[int, float, float, float]]],
    colors: Mapping[str, str],
    *,
    unit: str,
    steps: int,
    theme: Theme,
    height: int,
    span: tuple[float, float] | None,
    digits: str,
    levels: Mapping[str, float] | None = None,
    level_words: str = "",
    banded: bool = False,
    always_legend: bool = False,
) -> Chart:
    table: list[tuple[float, float, float, float, str, str]] = [
        (*point, name, "dot" if len(found) <= MOST_DOTS else "point")
        for name, found in series.items()
        for point in found
    ]
    table += [(math.nan, level, math.nan, math.nan, name, "level") for name, level in (levels or {}).items()]
    if not any(series.values()):
        # Nothing is drawn of these rows: they give an empty chart an axis.
        frame = [(math.nan, end, end, end, "", "frame") for end in span or (0.0, 1.0)]
        table += frame + [(0.0, *row[1:5], "level") for row in frame if levels is not None]
    # One table of fixed columns: with other data, and nothing else, the picture is kept.
    data = pd.DataFrame(table, columns=["step", "value", "low", "high", "name", "kind"])
    data = data.astype({"step": float, "value": float, "low": float, "high": float, "name": str, "kind": str})

    several = len(series) > 1 or always_legend
    legend = {
        "title": None,
        "orient": "top",
        "direction": "horizontal",
        "columns": 0 if len(series) < 4 else 2,
    }
    color = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": list(colors), "range": list(colors.values())},
        "legend": legend if several else None,
        "sort": None,
    }
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "step",
        "scale": {"domain": [0, max(steps, 1)], "nice": False},
        "axis": {"format": "d", "tickMinStep": 1, "tickCount": 5, "grid": False},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "title": unit,
        "scale": {"domain": list(span), "nice": False} if span else {"zero": False},
        "axis": {"format": digits, "tickCount": 4},
    }
    exact = digits if digits.endswith("%") else ".4~g"
    tips = [_tip("name", "curve"), _tip("step", "step", "d"), _tip("value", unit, exact)]
    if banded:
        tips += [_tip("low", "95% from", exact), _tip("high", "to", exact)]
    place = {"x": x, "y": y, "color": color}
    layers: list[dict[str, Any]] = []
    if banded:
        layers.append(
            _layer(
                "datum.kind !== 'level'",
                {"type": "area", "opacity": 0.18},
                place | {"y": y | {"field": "low"}, "y2": {"field": "high"}},
            )
        )
    if levels is not None:
        tip = [_tip("name", level_words), _tip("value", unit, exact)]
        layers.append(
            _layer(
                "datum.kind === 'level'",
                {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.3},
                {"y": y, "color": color, "tooltip": tip, "opacity": _seen("!isValid(datum.step)", 1)},
            )
        )
    layers += [
        _layer("datum.kind !== 'level'", {"type": "line", "strokeWidth": 2}, place),
        # Dots where there are few points; unseen and larger ones, to hover over, everywhere.
        _layer(
            "datum.kind !== 'level'",
            {"type": "circle", "opacity": 1},
            place | {"size": _seen("datum.kind === 'dot'", 24)},
        ),
        _layer(
            "datum.kind !== 'level'", {"type": "circle", "size": 160, "opacity": 0}, place | {"tooltip": tips}
        ),
    ]
    return Chart({"height": height, "layer": layers, "config": themed(theme)}, data)


def _layer(kept: str, mark: dict[str, Any], encoding: dict[str, Any]) -> dict[str, Any]:
    return {"transform": [{"filter": kept}], "mark": mark, "encoding": encoding}


def _seen(test: str, value: float) -> dict[str, Any]:
    return {"condition": {"test": test, "value": value}, "value": 0}


def _tip(name: str, title: str, digits: str | None = None) -> dict[str, Any]:
    if digits is None:
        return {"field": name, "type": "nominal", "title": title}
    return {"field": name, "type": "quantitative", "title": title, "format": digits}


def themed(theme: Theme) -> dict[str, Any]:
    """Vega-Lite's configuration of a chart in a theme's colours, on whatever background the page has."""
    return {
        "background": "transparent",
        "font": FONT_FAMILY,
        "padding": 4,
        "view": {"stroke": None},
        "axis": {
            "labelColor": theme.text,
            "titleColor": theme.text,
            "gridColor": theme.grid,
            "domainColor": theme.line,
            "tickColor": theme.line,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 6,
        },
        "legend": {
            "labelColor": theme.text,
            "labelFontSize": 11,
            "labelLimit": 420,
            "symbolType": "stroke",
            "symbolStrokeWidth": 3,
            "symbolOpacity": 1,
        },
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _or_nan(value: Any) -> float:
    return value if _is_number(value) else math.nan
