"""What the canvas component is sent, and what it may send back."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.components.canvas_heatmap import clicked, payload
from kvviz.figures.canvas import MISSING, CanvasPanel, quantise, value_at
from tests.figures.drawn import NASTY

SCALE = {"low": 0.0, "high": 1.0, "unit": "attention", "row_title": "query", "col_title": "key"}


def unpack(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(data[4 : 4 + length]), data[4 + length :]


@given(
    share=st.floats(min_value=0, max_value=1),
    bend=st.sampled_from(["linear", "sqrt", "log"]),
    low=st.floats(min_value=-5, max_value=5),
)
def test_a_value_survives_its_byte(share, bend, low) -> None:
    """True to one level of the scale: evenly, by square root, or by a 63rd of a decade."""
    high = low + 2.0
    value = low + share * (high - low)
    back = float(value_at(quantise(np.array([value]), low, high, bend), low, high, bend)[0])
    error = abs(back - value) / (high - low)
    if bend == "linear":
        assert error <= 0.5 / 254 + 1e-5
    elif bend == "sqrt":
        assert error <= 1 / 254 + 1e-5
    else:
        assert error <= max(0.02 * share, 1.1e-4) + 1e-5


def test_missing_and_far_values() -> None:
    levels = quantise(np.array([np.nan, np.inf, -9.0, 9.0, 0.0, 1.0]), 0.0, 1.0)
    assert levels.tolist() == [MISSING, MISSING, 0, 254, 0, 254] or levels.tolist() == [
        MISSING,
        254,
        0,
        254,
        0,
        254,
    ]
    assert np.isnan(value_at(np.array([MISSING], dtype=np.uint8), 0.0, 1.0)[0])
    with pytest.raises(ValueError, match="below"):
        quantise(np.zeros(2), 1.0, 1.0)


def test_a_panel_checks_itself() -> None:
    with pytest.raises(ValueError, match="uint8"):
        CanvasPanel("a", np.zeros((2, 2)), ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="texts"):
        CanvasPanel("a", np.zeros((2, 2), dtype=np.uint8), ["a"], ["a", "b"])


def test_payload_holds_every_byte_once_and_tokens_as_visible_text() -> None:
    first = np.arange(6, dtype=np.uint8).reshape(2, 3)
    second = np.full((1, 3), 255, dtype=np.uint8)
    columns = [NASTY, " a", "\n"]
    panels = [CanvasPanel("one", first, ["x", "y"], columns), CanvasPanel("two", second, ["z"], columns)]
    header, levels = unpack(payload(panels, selected=(1, 0, 2), bend="log", **SCALE))
    assert levels == first.tobytes() + second.tobytes()
    assert [(p["rows"], p["cols"]) for p in header["panels"]] == [(2, 3), (1, 3)]
    shared = header["panels"][0]["col_tokens"]
    assert header["panels"][1]["col_tokens"] == shared
    assert header["tokens"][shared] == [NASTY.replace(" ", "·"), "·a", "⏎"]
    assert header["selected"] == [1, 0, 2]
    assert (header["low"], header["high"], header["bend"], header["unit"]) == (0.0, 1.0, "log", "attention")
    assert header["light"] != header["dark"]


def test_a_million_cells_are_a_megabyte() -> None:
    tokens = ["a"] * 1024
    panel = CanvasPanel("big", np.zeros((1024, 1024), dtype=np.uint8), tokens, tokens)
    assert len(payload([panel], **SCALE)) < 1024**2 + 20_000


@pytest.mark.parametrize(
    ("sent", "cell"),
    [
        ([0, 1, 2], (0, 1, 2)),
        ([0, 1.0, 2], (0, 1, 2)),
        (None, None),
        ([0, 2, 0], None),
        ([1, 0, 0], None),
        ([0, -1, 0], None),
        ([0, 0.5, 0], None),
        ([0, True, 0], None),
        ([0, float("nan"), 0], None),
        ([0, float("inf"), 0], None),
        (["0", 0, 0], None),
        ({"panel": 0}, None),
        ([0, 0], None),
    ],
)
def test_only_a_cell_of_these_panels_counts_as_a_click(sent, cell) -> None:
    panels = [CanvasPanel("a", np.zeros((2, 3), dtype=np.uint8), ["a", "b"], ["a", "b", "c"])]
    assert clicked(sent, panels) == cell


def test_the_script_never_writes_markup() -> None:
    """Tokens reach the page through textContent and fillText only."""
    from app.components import canvas_heatmap

    script = (canvas_heatmap._HERE / "canvas_heatmap.js").read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in script


def page() -> None:
    import numpy as np
    import streamlit as st

    from app.components.canvas_heatmap import canvas_heatmap
    from kvviz.figures.canvas import CanvasPanel, quantise

    panel = CanvasPanel("map", quantise(np.eye(3), 0.0, 1.0), ["<b>", "b", "c"], ["a", "b", "c"])
    cell = canvas_heatmap(
        [panel],
        low=0.0,
        high=1.0,
        unit="attention",
        row_title="query",
        col_title="key",
        key="map",
        selected=(0, 2, 1),
    )
    st.text(f"selected {cell}")


def test_it_runs_on_a_page_and_keeps_the_selection_it_was_given() -> None:
    at = AppTest.from_function(page).run()
    assert not at.exception
    assert at.text[0].value == "selected (0, 2, 1)"
    (element,) = at.get("bidi_component")
    header, levels = unpack(element.proto.bytes)
    assert header["selected"] == [0, 2, 1]
    assert list(levels) == [254, 0, 0, 0, 254, 0, 0, 0, 254]
