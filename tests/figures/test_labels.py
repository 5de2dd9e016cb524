"""Text is escaped, visible, and does not overlap."""

from __future__ import annotations

import html
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvviz.figures import labels


@given(st.text())
def test_escaping_leaves_no_markup_and_loses_nothing(text: str) -> None:
    escaped = labels.escape(text)
    assert "<" not in escaped
    assert ">" not in escaped
    assert html.unescape(escaped) == html.unescape(escaped.replace("&lt;", "<")) or "&" in text
    assert escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=40))
def test_every_text_can_be_sent_and_seen(text: str) -> None:
    shown = labels.visible(text)
    json.dumps(shown).encode()
    shown.encode("utf-8")  # lone surrogates would raise
    assert shown
    assert not set(shown) & set(" \n\t\r\x00\x1b\u202e")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("\n", "⏎"),
        ("", "∅"),
        ("a\x00b", "a␀b"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\ud800", "�"),
        ("שלום", "\u2068שלום\u2069"),
        ("👨‍👩‍👧", "👨‍👩‍👧"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert labels.visible(text) == shown


def test_a_long_token_is_cut() -> None:
    assert labels.visible("a" * 100, 10) == "a" * 9 + "…"


@given(
    names=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=400),
    room=st.integers(min_value=40, max_value=1400),
)
def test_labels_never_overlap(names: list[str], room: int) -> None:
    """Neighbouring ticks are at least as far apart as the labels are long (upright: as they are high)."""
    for ticks, _ in (labels.x_ticks(names, room), labels.y_ticks(names, room)):
        positions = ticks["tickvals"]
        assert positions[0] == 0
        assert len(positions) == len(ticks["ticktext"])
        if len(positions) < 2:
            continue
        apart = (positions[1] - positions[0]) * room / len(names)
        assert apart >= labels.FONT  # upright or down the side
    ticks, _ = labels.x_ticks(names, room)
    if ticks["tickangle"] == 0 and len(ticks["tickvals"]) > 1:
        apart = ticks["tickvals"][1] * room / len(names)
        assert apart >= labels.widest([labels.visible(name, 14) for name in names])


def test_thirty_two_heads_are_all_labelled_at_700_pixels() -> None:
    ticks, _ = labels.x_ticks([str(n) for n in range(32)], 700 - 42 - 92)
    assert ticks["tickvals"] == list(range(32))


def test_equal_tokens_keep_their_own_places() -> None:
    ticks, _ = labels.x_ticks(["the", "the", "the"], 500)
    assert ticks["tickvals"] == [0, 1, 2]
    assert ticks["ticktext"] == ["the", "the", "the"]


def test_token_axis_names_every_position_in_hovers() -> None:
    tokens = [" a", "<b>"] * 50
    ticks, _ = labels.x_ticks(tokens, 200)
    axis = labels.token_axis(ticks, tokens)
    assert len(axis["labelalias"]) == 100
    assert axis["labelalias"]["3"] == "3 “&lt;b&gt;”"
    # Further from a whole position than plotly's tolerance, nearer than anyone sees.
    assert all(1e-4 < (value % 1) / len(tokens) < 1e-3 for value in axis["tickvals"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-2.5, "−2.5"),
        (float("nan"), "no value"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert labels.number(value) == text
