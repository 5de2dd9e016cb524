"""The one heatmap: its numbers, its clicks, its empty cells and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from kvviz.figures.heatmap import cells, limits
from tests.figures.drawn import NASTY, assert_escaped, trace

NAMES = {"row_title": "student layer", "col_title": "student head", "unit": "relative error"}


def values(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 0.3, (rows, cols))


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (6, 8), (24, 32)])
def test_cells_carry_the_numbers_and_say_where_they_are(theme, shape) -> None:
    grid = values(*shape)
    figure = cells(grid, theme=theme, **NAMES)
    np.testing.assert_allclose(trace(figure, "values").z, grid)
    for (row, col), text in np.ndenumerate(trace(figure, "values").text):
        assert f"{grid[row, col]:.3g}" in text
        assert f"student layer <b>{row}</b>" in text
        assert f"student head <b>{col}</b>" in text
    assert figure.layout.xaxis.title.text == "student head"
    assert figure.layout.yaxis.title.text == "student layer"
    assert "relative error" in trace(figure, "values").colorbar.title.text
    assert figure.layout.yaxis.range == (shape[0] - 0.5, -0.5)  # layer 0 on top


def test_only_the_cells_themselves_are_hovered_and_clicked() -> None:
    """Written values and the patches of missing ones lie above them."""
    from kvviz.figures.theme import LIGHT

    grid = values(6, 8)
    grid[2, 3] = np.nan
    figure = cells(grid, theme=LIGHT, show_values=True, **NAMES)
    assert figure.layout.hovermode == "closest"
    assert figure.layout.dragmode == "pan"
    assert {one.name for one in figure.data if one.hoverinfo != "skip"} == {"values"}


def test_sequential_starts_at_zero_and_says_where_it_is_clipped(theme) -> None:
    grid = values(24, 32)
    heat = trace(cells(grid, theme=theme, **NAMES), "values")
    p99 = np.percentile(grid, 99)
    assert heat.zmin == 0
    assert heat.zmax == pytest.approx(p99)
    assert f"clipped at p99 = {p99:.3g}" in heat.colorbar.title.text
    whole = trace(cells(grid, theme=theme, clip=False, **NAMES), "values")
    assert whole.zmax == grid.max()
    assert "clipped" not in whole.colorbar.title.text


def test_few_cells_are_not_clipped() -> None:
    """The 99th percentile of eight values is no percentile: it would only hide the largest."""
    assert limits(np.arange(8.0)).high == 7.0
    assert not limits(np.arange(8.0)).clipped


def test_diverging_is_symmetric_about_its_centre(theme) -> None:
    grid = np.array([[0.2, 1.0], [1.1, 1.4]])
    heat = trace(cells(grid, theme=theme, scale="diverging", center=1.0, **NAMES), "values")
    assert (heat.zmin, heat.zmax) == pytest.approx((0.2, 1.8))
    signed = limits(np.array([-3.0, 1.0]), "diverging")
    assert (signed.low, signed.high) == (-3.0, 3.0)


def test_unit_scale_spans_zero_to_one_and_paints_the_worst_strongest(theme) -> None:
    heat = trace(cells(np.array([[-0.5, 0.9]]), theme=theme, scale="unit", **NAMES), "values")
    assert (heat.zmin, heat.zmax) == (0, 1)
    assert heat.colorscale[0][1] == theme.sequential[-1][1]


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_limits_of_nothing_are_still_a_scale(fill: float) -> None:
    span = limits(np.full((3, 3), fill))
    assert span.low == 0
    assert span.high > 0


def test_mostly_zero_values_are_not_clipped_to_nothing() -> None:
    grid = np.zeros(1000)
    grid[0] = 5.0
    assert limits(grid).high == 5.0


def test_missing_cells_are_marked_and_not_zero(theme) -> None:
    grid = np.array([[1.0, np.nan], [np.inf, 0.0]])
    figure = cells(grid, theme=theme, **NAMES)
    shown = np.asarray(trace(figure, "values").z, dtype=float)
    assert np.isnan(shown).tolist() == [[False, True], [True, False]]
    crosses = next(one for one in figure.data if one.name == "no value" and one.type == "scatter")
    assert sorted(zip(crosses.y, crosses.x, strict=True)) == [(0, 1), (1, 0)]
    hover = trace(figure, "values").text
    assert "no value" in hover[0][1]
    assert "∞" in hover[1][0]


def test_selected_highlighted_and_bracketed(theme) -> None:
    figure = cells(
        values(4, 8),
        theme=theme,
        selected=(2, 5),
        highlight_rows=[1],
        highlight_cols=[0, 7],
        col_brackets=[(0, 3, "KV 0"), (4, 7, "KV <1>")],
        **NAMES,
    )
    rectangles = [(s.x0, s.y0, s.x1, s.y1) for s in figure.layout.shapes if s.type == "rect"]
    assert rectangles.count((4.5, 1.5, 5.5, 2.5)) == 2  # light and accent: visible on every colour
    assert (-0.5, 0.5, 7.5, 1.5) in rectangles
    assert (6.5, -0.5, 7.5, 3.5) in rectangles
    assert [note.text for note in figure.layout.annotations] == ["KV 0", "KV &lt;1&gt;"]


def test_a_selection_outside_the_grid_is_not_drawn(theme) -> None:
    assert not cells(values(2, 2), theme=theme, selected=(7, 0), **NAMES).layout.shapes


def test_values_are_written_where_there_is_room(theme) -> None:
    small = cells(np.array([[0.5, 0.0], [np.nan, -123.4]]), theme=theme, **NAMES)
    written = {t for one in small.data if one.name == "written" for t in np.asarray(one.text).ravel()}
    assert written == {"0.50", "0", "", "−123"}
    layers = [np.asarray(one.text) != "" for one in small.data if one.name == "written"]
    assert sum(layer.astype(int) for layer in layers).tolist() == [
        [1, 1],
        [0, 1],
    ]  # each value once, none for NaN
    assert not [one for one in cells(values(24, 32), theme=theme, **NAMES).data if one.name == "written"]


def test_names_and_hovers_are_text(theme) -> None:
    figure = cells(
        values(2, 2),
        theme=theme,
        row_names=[NASTY, NASTY],
        col_names=[NASTY, "ok"],
        hover=[[NASTY, ""], ["two\nlines", ""]],
        row_title=NASTY,
        col_title=NASTY,
        unit=NASTY,
        row_brackets=[(0, 1, NASTY)],
    )
    assert_escaped(figure)
    assert any("two<br>lines" in text for line in trace(figure, "values").text for text in line)


def test_many_missing_cells_are_patches_without_crosses(theme) -> None:
    """A cross is an element of the page, a patch is a pixel."""
    figure = cells(np.full((80, 80), np.nan), theme=theme, **NAMES)
    assert [one.type for one in figure.data if one.name == "no value"] == ["heatmap"]


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 2)), np.zeros((2, 2, 2))])
def test_wrong_shapes_are_refused(theme, wrong) -> None:
    with pytest.raises(ValueError, match="shape"):
        cells(wrong, theme=theme, **NAMES)


def test_wrong_numbers_of_names_are_refused(theme) -> None:
    with pytest.raises(ValueError, match="names"):
        cells(values(2, 2), theme=theme, row_names=["a"], **NAMES)
    with pytest.raises(ValueError, match="hover"):
        cells(values(2, 2), theme=theme, hover=[["a", "b"]], **NAMES)


def test_large_values_are_written_short(theme) -> None:
    figure = cells(np.array([[99.994, 123.4], [9876.5, -123456.0]]), theme=theme, **NAMES)
    written = {t for one in figure.data if one.name == "written" for t in np.asarray(one.text).ravel()}
    assert written == {"", "99.99", "123", "9876", "−1.2e+05"}
