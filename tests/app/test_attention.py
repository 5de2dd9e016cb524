"""Attention KL: every mode and target draws, the table lists the worst rows, a head opens and closes."""

from __future__ import annotations

import pytest

from tests.app.browsing import HOSTILE, LONG, MODES, READINGS, charts, notes, open_at, specs


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("target", ["projected", "mixed"])
def test_draws_in_every_mode(mode, target):
    app = open_at("attention", part="q", layer=1, head=1, token=4, attention_target=target, **mode)
    assert not app.exception
    assert charts(app) == 3
    # An elastic projector has no weights to mix the teacher's heads with: the address says so, the rest is kept.
    refused = target == "mixed" and mode.get("flat_kind") == "elastic"
    assert ("mixed needs weights" in notes(app)) == refused
    assert ("fell outside" in notes(app)) == (target == "mixed" and not refused)


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_draws_for_every_text(reading):
    app = open_at("attention", part="k", head=0, token=10**6, **reading)
    assert not app.exception
    assert charts(app) == 3


@pytest.mark.parametrize("bend", ["linear", "sqrt", "log"])
@pytest.mark.parametrize("baseline", [False, True])
def test_every_colour_scale_draws(bend, baseline):
    app = open_at("attention", part="q", head=0, bend=bend, baseline=baseline)
    assert not app.exception
    assert charts(app) == 3


def test_the_table_holds_the_ten_worst_rows_in_order():
    table = open_at("attention").dataframe[0].value
    assert len(table) == 10
    assert table["KL, nats"].is_monotonic_decreasing


def test_a_key_head_shows_the_query_heads_it_serves():
    app = open_at("attention", part="k", layer=1, head=1)
    assert "Student layer 1, query head 2" in [element.value for element in app.subheader]
    assert "K head 1 serves query heads 2 to 3" in notes(app)


def test_a_selection_out_of_range_is_clamped_to_the_last_head():
    app = open_at("attention", part="q", layer=10**6, head=10**6, token=10**6)
    assert not app.exception
    assert "Student layer 3, query head 3" in [element.value for element in app.subheader]


def test_the_way_back_closes_the_detail():
    app = open_at("attention", part="q", layer=0, head=1, token=3)
    app.button(key="strip.clear").click().run()
    assert charts(app) == 1
    assert not {"head", "token"} & set(app.query_params)


def test_a_hostile_text_is_never_markup():
    app = open_at("attention", source="own", text=HOSTILE, part="q", head=0)
    assert not app.exception
    for spec in specs(app):
        assert "<script" not in spec
        assert "<img" not in spec


def test_a_long_text_goes_to_the_canvas():
    app = open_at("attention", source="own", text=LONG, part="q", head=0)
    assert not app.exception
    assert charts(app) == 2
