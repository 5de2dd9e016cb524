"""The selected head in words, what belongs to it, and what counts as a click."""

from __future__ import annotations

import pytest

from app.charts import clicked_position
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
    ("points", "expected"),
    [
        ([], None),
        ([{"customdata": [7]}], 7),
        ([{"customdata": {"0": 7}}], 7),
        ([{"customdata": [7.0, 1]}], 7),
        ([{"x": 1}, {"customdata": [3]}], 3),
        ([{"customdata": ["7"]}], None),
        ([{"customdata": [True]}], None),
        ([{"customdata": [1.5]}], None),
        ([{"customdata": [float("nan")]}], None),
        ([{"customdata": []}], None),
    ],
)
def test_only_a_whole_number_counts_as_a_click(points, expected):
    assert clicked_position(points) == expected
