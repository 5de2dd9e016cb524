"""Curves of runs: every finite point of a metric and nothing else; only data change as a run goes on."""

from __future__ import annotations

import math

import altair as alt
import pytest

from kvviz.figures.runs import BY_KEY, COMPARED, MOST_DOTS, MOST_POINTS, PANELS, overlay, panel_chart, points

ROWS = [
    {"step": 0, "eval_loss": 2.0, "k_spread": 0.8, "v_spread": 0.5, "accuracy": 0.3}
    | {"accuracy_low": 0.2, "accuracy_high": 0.45},
    {"step": 5, "loss": 1.5, "learning_rate": 1e-3},
    {"step": 10, "loss": 1.2, "eval_loss": 1.4, "k_spread": 0.3, "v_spread": 0.45, "accuracy": 0.5}
    | {"accuracy_low": 0.4, "accuracy_high": 0.6},
    {"step": 15, "loss": None},
    {"step": 20, "loss": 1.0},
]


def drawn(chart, kinds=("dot", "point")) -> list[tuple]:
    found = chart.data[chart.data["kind"].isin(kinds)]
    return [tuple(row) for row in found[["name", "step", "value"]].itertuples(index=False)]


def valid(chart) -> None:
    """A specification that Vega-Lite's own schema takes."""
    alt.LayerChart.from_dict(chart.spec | {"data": {"name": "table"}})


def test_training_and_held_out_losses_lie_in_one_chart(theme):
    chart = panel_chart(BY_KEY["loss"], ROWS, 20, theme=theme)
    assert drawn(chart) == [
        ("training", 5, 1.5),
        ("training", 10, 1.2),
        ("training", 20, 1.0),
        ("held-out", 0, 2.0),
        ("held-out", 10, 1.4),
    ]
    valid(chart)


def test_half_of_the_first_spread_is_a_level(theme):
    chart = panel_chart(BY_KEY["spread"], ROWS, 20, theme=theme)
    levels = chart.data[chart.data["kind"] == "level"]
    assert dict(zip(levels["name"], levels["value"], strict=True)) == {"K": 0.4, "V": 0.25}
    valid(chart)


def test_accuracy_has_its_interval(theme):
    chart = panel_chart(BY_KEY["accuracy"], ROWS, 20, theme=theme)
    assert chart.data[["low", "high"]].to_numpy().tolist() == [[0.2, 0.45], [0.4, 0.6]]
    assert chart.spec["layer"][0]["mark"]["type"] == "area"
    valid(chart)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.key)
def test_nothing_but_data_depends_on_how_far_a_run_is(theme, panel):
    specs = [panel_chart(panel, rows, 20, theme=theme).spec for rows in ([], ROWS[:1], ROWS, ROWS * 40)]
    assert all(spec == specs[0] for spec in specs)
    valid(panel_chart(panel, [], 20, theme=theme))


@pytest.mark.parametrize("metric", COMPARED)
def test_runs_are_overlaid_by_name_each_in_its_colour(theme, metric):
    names = ["a", "b <b>x</b>", "c"]
    row = {"step": 1, metric: 0.5}
    chart = overlay({name: [row] for name in names}, metric, 300, theme=theme)
    assert [name for name, *_ in drawn(chart)] == names
    color = chart.spec["layer"][0]["encoding"]["color"]
    assert color["scale"]["domain"] == names
    assert len(set(color["scale"]["range"])) == 3
    assert chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0, 300]
    valid(chart)


def test_a_long_run_is_thinned_and_keeps_its_ends(theme):
    rows = [{"step": step, "loss": float(step)} for step in range(10_000)]
    found = points(rows, "loss")
    assert len(found) == MOST_POINTS
    assert (found[0][0], found[-1][0]) == (0, 9_999)
    kinds = set(panel_chart(BY_KEY["loss"], rows, 10_000, theme=theme).data["kind"])
    assert kinds == {"point"}, "dots would hide the line"
    few = panel_chart(BY_KEY["loss"], rows[:MOST_DOTS], 10_000, theme=theme)
    assert set(few.data["kind"]) == {"dot"}


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "1", True])
def test_what_is_no_number_is_no_point(value):
    assert points([{"step": 1, "loss": value}], "loss") == []
