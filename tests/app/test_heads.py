"""Head mixers: every mode draws, words agree with the mixers, the selection leads in and out."""

from __future__ import annotations

import pytest

from tests.app.browsing import MODES, charts, notes, open_at


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_draws_in_every_mode(mode):
    app = open_at("heads", part="q", layer=1, head=1, **mode)
    assert not app.exception
    elastic = mode.get("flat_kind") == "elastic"
    assert charts(app) == (0 if elastic else 6)
    assert ("not a linear map" in notes(app)) == elastic


def test_the_elastic_projector_offers_the_linear_one():
    app = open_at("heads", kv_projection_mode="flat", flat_kind="elastic", init="random")
    app.button(key="heads.linear").click().run()
    assert charts(app) == 6
    assert "flat_kind" not in app.query_params


def test_nothing_selected_says_what_to_do():
    app = open_at("heads")
    assert "Click a row of a heatmap" in notes(app)


def test_a_selection_out_of_range_is_clamped_to_the_last_head():
    app = open_at("heads", part="q", layer=10**6, head=10**6)
    assert not app.exception
    assert not app.error
    assert "**Q, student layer 3, head 3** ←" in notes(app)


def test_next_head_and_the_way_back():
    app = open_at("heads", part="k", layer=1, head=1)
    app.button(key="strip.Next").click().run()
    assert "**K, student layer 1, head 0** ←" in notes(app)
    app.button(key="strip.clear").click().run()
    assert "head" not in app.query_params
    assert "Click a row of a heatmap" in notes(app)


def test_the_layer_chooser_moves_the_view():
    app = open_at("heads")
    app.slider(key="control.heads.layer").set_value(2).run()
    assert app.query_params["layer"] == "2"


def test_layers_that_share_one_map_say_so():
    assert "share one map" in notes(open_at("heads", share_layers="true"))
    assert "share one map" not in notes(open_at("heads"))


def test_another_part_drops_the_head_of_the_first():
    app = open_at("heads", part="k", head=1)
    group = next(group for group in app.button_group if group.key == "control.heads.part")
    group.set_value("v").run()
    assert app.query_params["part"] == "v"
    assert "head" not in app.query_params


def test_choosing_the_elastic_projector_lets_go_of_the_fit_and_linear_brings_it_back():
    app = open_at("heads", kv_projection_mode="flat")
    for kind, init in (("elastic", "random"), ("linear", "fitted")):
        group = next(group for group in app.button_group if group.key == "control.flat_kind")
        group.set_value(kind).run()
        assert not app.error
        assert app.session_state["view"].alignment.flat_kind == kind
        assert app.session_state["view"].alignment.init == init
