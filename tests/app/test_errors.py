"""K/V errors: every mode and measure draws, a head opens and closes, odd texts stay text."""

from __future__ import annotations

import pytest

from tests.app.browsing import HOSTILE, LONG, MODES, READINGS, charts, notes, open_at, specs


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_draws_in_every_mode(mode):
    app = open_at("errors", part="v", layer=1, head=1, token=4, **mode)
    assert not app.exception
    assert charts(app) == 6


@pytest.mark.parametrize("metric", ["relative_error", "cosine", "r2", "norm_ratio"])
@pytest.mark.parametrize("baseline", [False, True])
def test_every_measure_draws(metric, baseline):
    app = open_at("errors", part="k", head=0, metric=metric, baseline=baseline)
    assert not app.exception
    assert charts(app) == 6


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_draws_for_every_text(reading):
    app = open_at("errors", part="k", head=0, token=10**6, **reading)
    assert not app.exception
    assert charts(app) == 6


def test_nothing_selected_says_what_to_do():
    app = open_at("errors")
    assert charts(app) == 3
    assert "Click a cell of a heatmap" in notes(app)


def test_a_selection_out_of_range_is_clamped_to_the_last_head():
    app = open_at("errors", part="q", layer=10**6, head=10**6, token=10**6)
    assert not app.exception
    assert "Q, student layer 3, head 3" in [element.value for element in app.subheader]


def test_the_way_back_closes_the_detail():
    app = open_at("errors", part="k", layer=0, head=1, token=3)
    app.button(key="strip.clear").click().run()
    assert charts(app) == 3
    assert not {"head", "token"} & set(app.query_params)


def test_a_hostile_text_is_never_markup():
    app = open_at("errors", source="own", text=HOSTILE, part="k", head=0)
    assert not app.exception
    for spec in specs(app):
        assert "<script" not in spec
        assert "<img" not in spec


def test_a_long_text_goes_to_the_canvas():
    app = open_at("errors", source="own", text=LONG, part="k", head=0)
    assert not app.exception
    assert charts(app) == 5
