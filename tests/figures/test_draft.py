"""A draft is the figure that plotly would have made, without its checks."""

from __future__ import annotations

import pytest
from plotly.subplots import make_subplots

from kvviz.figures.draft import Draft


def test_a_draft_is_the_figure_that_plotly_would_have_made(theme) -> None:
    grid = {
        "rows": 2,
        "cols": 2,
        "shared_xaxes": True,
        "subplot_titles": ["a", "b"],
        "row_heights": [0.7, 0.3],
    }
    draft = Draft(theme, grid)
    draft.add("bar", (1, 2), name="one", y=[1, 2])
    draft.add("scatter", (2, 1), name="two", y=[3])
    font = {"size": 9}
    made = draft.figure(
        {"xaxis2": {"title": {"text": "x"}}}, {"font": font}, height=300, annotations=[{"text": "c", "x": 1}]
    )

    same = make_subplots(**grid)
    same.add_bar(name="one", y=[1, 2], row=1, col=2)
    same.add_scatter(name="two", y=[3], row=2, col=1)
    same.update_annotations(font=font)
    same.add_annotation(text="c", x=1)
    same.update_layout(xaxis2_title_text="x", **theme.layout(height=300))
    assert made.to_plotly_json() == same.to_plotly_json()


def test_drafts_do_not_share_what_they_change(theme) -> None:
    grid = {"rows": 1, "cols": 2, "subplot_titles": ["a", "b"]}
    Draft(theme, grid).figure({"xaxis": {"visible": False}}, annotations=[{"text": "mine"}])
    second = Draft(theme, grid).figure()
    assert second.layout.xaxis.visible is None
    assert [note.text for note in second.layout.annotations] == ["a", "b"]


def test_without_a_grid_there_is_one_pair_of_axes(theme) -> None:
    draft = Draft(theme)
    draft.add("heatmap", z=[[1.0]])
    made = draft.figure(xaxis={"range": [0, 1]})
    assert made.layout.xaxis.range == (0, 1)


def test_what_plotly_does_not_know_is_caught_by_the_tests(theme) -> None:
    draft = Draft(theme)
    draft.add("heatmap", z=[[1.0]], colourscale="wrong")
    with pytest.raises(ValueError, match="colourscale"):
        draft.figure()
