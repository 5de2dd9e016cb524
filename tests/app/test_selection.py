"""The selected head in words, what belongs to it, and what counts as a click."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from app import charts
from app.charts import whole_numbers
from app.selection import Selection, related, sentence
from kvviz.geometry import Geometry

GROUPED = Geometry(layers=2, heads=8, kv_heads=2, head_dim=4, value_dim=4, rope_theta=None)


def chosen(part="k", head=1, heads=((2, 0.61), (3, 0.39)), layers=((3, 0.5), (4, 0.5))):
    return Selection(part=part, layer=2, head=head, heads=heads, layers=layers)


def test_the_sentence_names_head_sources_and_layers():
    assert (
        sentence(chosen())
        == "**K, student layer 2, head 1** ← teacher heads 2 (61%), 3 (39%), teacher layers 3, 4"
    )


def test_unequal_layers_carry_their_shares_and_one_layer_none():
    assert sentence(chosen(layers=((3, 0.7), (4, 0.3)))).endswith("teacher layers 3 (70%), 4 (30%)")
    assert sentence(chosen(layers=((3, 1.0),))).endswith("teacher layer 3")


def test_small_and_many_sources_are_counted_not_named():
    many = ((5, 0.3), (1, 0.2), (2, 0.2), (3, 0.15), (4, 0.1), (0, 0.05))
    assert "5 (30%), 1 (20%), 2 (20%), 3 (15%) and 2 more" in sentence(chosen(heads=many))
    even = tuple((head, 1 / 32) for head in range(32))
    assert "32 teacher heads, none with 5% of the weight" in sentence(chosen(heads=even))
    assert chosen(heads=even).sources == []


def test_without_weights_the_sentence_says_so():
    assert "elastic" in sentence(chosen(heads=()))


@pytest.mark.parametrize(
    ("part", "head", "asked", "expected"),
    [
        ("k", 1, "k", [1]),
        ("k", 1, "v", [1]),
        ("k", 1, "q", [4, 5, 6, 7]),
        ("q", 5, "k", [1]),
        ("q", 3, "v", [0]),
        ("q", 3, "q", [3]),
    ],
)
def test_heads_of_one_group_belong_together(part, head, asked, expected):
    assert related(chosen(part=part, head=head), asked, GROUPED) == expected


@pytest.mark.parametrize(
    ("data", "count", "expected"),
    [
        ([], 1, None),
        ([7], 1, [7]),
        ([7.0, 1], 2, [7, 1]),
        ([7, 1], 1, None),
        ([7], 2, None),
        (["7"], 1, None),
        ([None], 1, None),
        ([[7]], 1, None),
        ([True], 1, None),
        ([1.5], 1, None),
        ([float("nan")], 1, None),
        ([float("inf")], 1, None),
    ],
)
def test_only_whole_numbers_count_as_a_click(data, count, expected):
    assert whole_numbers(data, count) == expected


def clicks(monkeypatch, chart, *sent, **options) -> list[tuple]:
    """What a chart's callback hears when the browser sends this."""
    heard: list[tuple] = []
    monkeypatch.setattr(charts, "plotly_figure", lambda figure, key, clicked: clicked(*sent))
    chart(go.Figure(), "key", lambda *place: heard.append(place), **options)
    return heard


def test_a_click_reaches_the_page_as_what_the_chart_shows(monkeypatch):
    assert clicks(monkeypatch, charts.cell_chart, "values", [3, 4]) == [(3, 4)]
    assert clicks(monkeypatch, charts.cell_chart, "values", [3]) == []
    assert clicks(monkeypatch, charts.token_chart, "values", [5]) == [(5,)]
    assert clicks(monkeypatch, charts.token_chart, "student", [5, 6], maps=["student"]) == [(5,)]
    assert clicks(monkeypatch, charts.token_chart, "teacher", [5, 6], maps=["student"]) == []
    assert clicks(monkeypatch, charts.side_chart, "student", ["student", 2]) == [("student", 2)]
    assert clicks(monkeypatch, charts.side_chart, "student", ["nobody", 2]) == []
    assert clicks(monkeypatch, charts.side_chart, "student", []) == []
