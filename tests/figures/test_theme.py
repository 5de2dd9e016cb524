"""Colours: both pages readable, every scale from the page's own tone outwards."""

from __future__ import annotations

import plotly.graph_objects as go
import plotly.io
import pytest

from kvviz.figures.theme import DARK, LIGHT, Theme, blend, readable_on, rgb, theme, translucent


def luminance(color: str) -> float:
    """Relative luminance after WCAG 2.1."""
    parts = [c / 255 for c in rgb(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_page_decides() -> None:
    assert theme(True) is DARK
    assert theme(False) is LIGHT
    assert DARK.dark
    assert not LIGHT.dark


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_accents_are_readable_on_the_page(look: Theme) -> None:
    assert contrast(look.text, look.background) >= 7
    for color in (look.teacher, look.student, look.accent, look.good, look.bad):
        assert contrast(color, look.background) >= 3, color
    for index in range(len(look.segments)):
        assert contrast(look.text, look.segment_fill(index)) >= 4.5, index


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_sequential_scale_moves_away_from_the_page(look: Theme) -> None:
    steps = [luminance(look.color_at(n / 50)) for n in range(51)]
    away = [b - a if look.dark else a - b for a, b in zip(steps, steps[1:], strict=False)]
    assert min(away) > -1e-3
    assert abs(steps[0] - luminance(look.background)) < abs(steps[-1] - luminance(look.background))
    assert [position for position, _ in look.sequential][:1] == [0.0]
    assert look.sequential[-1][0] == 1.0
    assert look.diverging[len(look.diverging) // 2][0] == 0.5


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_numbers_are_readable_in_every_cell(look: Theme) -> None:
    for scale in (look.sequential, look.diverging):
        for n in range(101):
            color = look.color_at(n / 100, scale)
            assert contrast(readable_on(color), color) >= 4.5


def test_segments_have_twelve_distinct_colours_and_padding_has_none_of_them() -> None:
    assert len(set(LIGHT.segments)) >= 12
    assert LIGHT.segment(13) == LIGHT.segment(1)
    assert LIGHT.segment(-1) == LIGHT.muted


def test_colour_arithmetic() -> None:
    assert blend("#ffffff", "#000000", 0.5) == "#808080"
    assert translucent("#0a0b0c", 0.25) == "rgba(10,11,12,0.25)"
    with pytest.raises(ValueError, match="colour"):
        rgb("red")


def test_template_does_not_depend_on_the_default_one(theme: Theme) -> None:
    """Importing streamlit changes plotly's default template; a figure must look the same."""
    before = plotly.io.templates.default
    try:
        plotly.io.templates.default = "none"
        one = go.Figure(layout=theme.layout()).to_json()
        plotly.io.templates.default = "seaborn"
        assert go.Figure(layout=theme.layout()).to_json() == one
    finally:
        plotly.io.templates.default = before
