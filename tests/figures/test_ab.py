"""The charts of a matrix: each figure where its number is, what was measured and what was expected in separate marks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kvviz.distill.ab import Interval, Row
from kvviz.distill.arms import ARMS
from kvviz.figures.ab import (
    AGAINST_FLAT,
    AGAINST_NONE,
    EXPECTED,
    MEASURED,
    START,
    accuracy_chart,
    accuracy_legend,
    difference_chart,
    difference_legend,
)


def row(arm: str, share: float | None = None, flat=None, none=None, expected: float | None = None) -> Row:
    accuracy = None if share is None else Interval(share, share - 0.05, share + 0.06)
    start = None if share is None else 0.25
    return Row(
        arm, ARMS[arm].title, (0,), accuracy, start, flat, none, {}, None, None, None, expected=expected
    )


ROWS = [
    row("flat", 0.5, none=Interval(-0.07, -0.12, -0.02), expected=0.65),
    row("uniform", 0.44, Interval(-0.06, -0.1, -0.02), Interval(-0.13, -0.23, -0.03), expected=0.7),
    row("none", 0.57, Interval(0.07, 0.02, 0.12)),
]


def kinds(chart, kind) -> dict[str, tuple]:
    rows = chart.data[chart.data["kind"] == kind]
    return {one.title: (one.value, one.low, one.high) for one in rows.itertuples()}


def of_kind(chart, kind) -> list[dict]:
    """The layers that draw rows of a kind."""
    return [
        layer
        for layer in chart.spec["layer"]
        if any(kind in one["filter"]["oneOf"] for one in layer.get("transform", []))
    ]


def test_each_arm_s_share_and_interval_are_drawn_in_the_order_of_the_matrix(theme):
    chart = accuracy_chart(ROWS, theme=theme)
    assert kinds(chart, MEASURED) == {
        ARMS["flat"].title: (0.5, 0.45, 0.56),
        ARMS["uniform"].title: (0.44, pytest.approx(0.39), 0.5),
        ARMS["none"].title: (0.57, pytest.approx(0.52), pytest.approx(0.63)),
    }
    assert kinds(chart, START) == {"": (0.25, 0.25, 0.25)}
    (rule, dot, _) = of_kind(chart, MEASURED)
    assert (rule["encoding"]["x"]["field"], rule["encoding"]["x2"]["field"]) == ("low", "high")
    assert dot["encoding"]["x"]["field"] == "value"
    assert dot["encoding"]["y"]["scale"]["domain"] == ["flat", "structured, uniform start", "no KV loss"]
    assert set(chart.data["arm"]) - {""} == set(dot["encoding"]["y"]["scale"]["domain"])


def test_what_is_expected_is_hollow_and_in_no_series_of_what_was_measured(theme):
    chart = accuracy_chart(ROWS, theme=theme)
    assert {title: found[0] for title, found in kinds(chart, EXPECTED).items()} == {
        ARMS["flat"].title: 0.65,
        ARMS["uniform"].title: 0.7,
    }
    (layer,) = of_kind(chart, EXPECTED)
    assert layer["mark"]["filled"] is False
    assert layer["transform"] == [{"filter": {"field": "kind", "oneOf": [EXPECTED]}}]
    assert "color" not in layer["encoding"]
    for other in of_kind(chart, MEASURED):
        assert other["transform"] == [{"filter": {"field": "kind", "oneOf": [MEASURED]}}]
        assert EXPECTED not in json.dumps(other)
    assert "not measured" in EXPECTED
    assert [words for _, _, words in accuracy_legend(ROWS, theme)] == [MEASURED, START, EXPECTED]


def test_other_expectations_move_the_hollow_marks_only(theme):
    chart = accuracy_chart(ROWS, theme=theme)
    other = accuracy_chart([replace(one, expected=0.123) for one in ROWS], theme=theme)
    measured = chart.data[chart.data["kind"] != EXPECTED]
    assert measured.equals(other.data[other.data["kind"] != EXPECTED])
    rows = [replace(one, expected=None) for one in ROWS]
    without = accuracy_chart(rows, theme=theme)
    assert measured.equals(without.data)
    assert not of_kind(without, EXPECTED)
    assert [words for _, _, words in accuracy_legend(rows, theme)] == [MEASURED, START]
    assert difference_chart(ROWS, theme=theme).data.equals(difference_chart(rows, theme=theme).data)


def test_only_the_data_change_while_runs_end(theme):
    """An arm whose runs are to come, and the same arm finished: one specification, so that the picture is kept."""
    empty = [row(one.arm, expected=one.expected) for one in ROWS]
    assert accuracy_chart(empty, theme=theme).spec == accuracy_chart(ROWS, theme=theme).spec
    assert list(accuracy_chart(empty, theme=theme).data["kind"]) == [EXPECTED] * 2
    few = [replace(one, against_none=None) for one in ROWS]
    near = [replace(one, against_baseline=Interval(0.01, -0.03, 0.05), against_none=None) for one in ROWS]
    assert difference_chart(empty, theme=theme).data.empty
    assert difference_chart(empty, theme=theme).spec == difference_chart(near, theme=theme).spec
    assert difference_chart(few, theme=theme).data.dtypes.equals(
        difference_chart(ROWS, theme=theme).data.dtypes
    )


def test_differences_are_in_points_around_zero_and_all_of_them_fit(theme):
    chart = difference_chart(ROWS, theme=theme)
    assert kinds(chart, AGAINST_FLAT)[ARMS["none"].title] == pytest.approx((7, 2, 12))
    assert kinds(chart, AGAINST_NONE)[ARMS["uniform"].title] == pytest.approx((-13, -23, -3))
    assert ARMS["flat"].title not in kinds(chart, AGAINST_FLAT)
    zero, line, dot = chart.spec["layer"]
    assert zero["encoding"]["x"]["datum"] == 0
    assert dot["encoding"]["x"]["scale"]["domain"] == [-30, 30]
    assert line["encoding"]["color"]["scale"]["domain"] == [AGAINST_FLAT, AGAINST_NONE]
    colors = [color for _, color, _ in difference_legend(theme)]
    assert colors == line["encoding"]["color"]["scale"]["range"]
    assert len(set(colors)) == 2


def test_a_matrix_without_an_arm_that_finished_has_charts(theme):
    for draw in (accuracy_chart, difference_chart):
        chart = draw([], theme=theme)
        assert chart.data.empty
        json.dumps(chart.spec)
