"""What a person does: open, click, slide, share a link, go back, let the teacher write."""

from __future__ import annotations

import json
import re

import pytest

PAGES = ["overview", "layers", "segments", "heads", "errors", "attention"]


def test_the_first_picture_says_how_well_the_pair_fits(visitor):
    page = visitor.open()
    assert page.get_by_role("heading", name="Overview").is_visible()
    assert "matches transformers within" in visitor.text()
    figures = visitor.metrics()
    assert len(figures) == 4
    assert all(float(figure.replace(",", "")) > 0 for figure in figures)
    assert len(re.findall(r"identity \d", visitor.text())) == 3
    assert json.loads(visitor.drawn("pipeline"))
    assert json.loads(visitor.drawn("held-out"))
    # Both texts are there, token by token, each token with its position and segment.
    tokens = page.locator("span[title^='token ']")
    assert tokens.count() > 100
    assert tokens.first.get_attribute("title").startswith("token 0: ")


@pytest.mark.parametrize(
    ("name", "key", "row", "col", "heading", "query"),
    [
        ("errors", "errors.k", 2, 1, "K, student layer 2, head 1", {"layer": "2", "head": "1"}),
        ("errors", "errors.v", 3, 0, "V, student layer 3, head 0", {"part": "v", "layer": "3", "head": "0"}),
        (
            "attention",
            "kl",
            1,
            3,
            "Student layer 1, query head 3",
            {"part": "q", "layer": "1", "head": "3"},
        ),
    ],
)
def test_a_click_on_a_heatmap_opens_that_head(visitor, name, key, row, col, heading, query):
    visitor.open(name)
    before = len(visitor.page.locator(".js-plotly-plot").all())
    visitor.click_cell(key, row, col)
    assert visitor.page.get_by_role("heading", name=heading).is_visible()
    assert visitor.query() == query
    assert visitor.page.locator(".js-plotly-plot").count() > before


def test_a_click_on_an_attention_map_frames_that_row_and_no_figure_is_built_anew(visitor):
    visitor.open("attention", layer=1, head=3, part="q")
    figures = visitor.page.locator(".js-plotly-plot")
    count = figures.count()
    figures.evaluate_all("all => all.forEach(figure => { figure.known = true; })")
    before = visitor.drawn("kl")
    assert visitor.frames("attention.maps") == []
    # The first axes are those of the teacher, whose rows are not the student's; the second those of the aligned map.
    visitor.click("attention.maps", 10, 40, axes=2)
    assert visitor.query()["token"] == "40"
    assert len(visitor.frames("attention.maps")) == 3
    assert visitor.drawn("kl") == before
    assert figures.evaluate_all("all => all.filter(figure => figure.known).length") == count == 3


def test_without_the_drawing_library_each_figure_says_so(visitor):
    visitor.page.route("**/plotly.min.js", lambda route: route.abort())
    page = visitor.open("layers")
    assert page.get_by_text("This figure could not be drawn").count() >= 2
    assert "could not be loaded. Reload the page." in visitor.text()
    assert visitor.errors, "and the console has it, too"
    visitor.errors.clear()


def test_a_click_on_a_mixer_is_seen_on_every_page_until_it_is_closed(visitor):
    visitor.open("heads", layer=1)
    visitor.click_cell("mixer.k", 1, 2)
    chosen = "K, student layer 1, head 1"
    assert chosen in visitor.text()
    assert visitor.query() == {"layer": "1", "head": "1"}
    for title in ("Layers", "K/V errors", "Attention KL", "Overview"):
        visitor.switch(title)
        assert chosen in visitor.text()
        assert visitor.query() == {"layer": "1", "head": "1"}
    visitor.keyed("strip.clear").get_by_role("button").click()
    visitor.ready()
    assert chosen not in visitor.text()
    assert "head" not in visitor.query()


def test_a_click_on_the_layer_map_selects_that_weight(visitor):
    visitor.open("layers")
    visitor.click_cell("layers.map", 2, 3)
    assert visitor.query() == {"layer": "2", "teacher_layer": "3"}
    assert "Student layer 2 reads teacher layers 3 (67%), 4 (33%)" in visitor.text()


def test_a_weight_moved_changes_the_map_and_the_figures_and_nothing_else(visitor):
    visitor.open("layers", layer=1, teacher_layer=2, example=3, share_dim_proj="false")
    map_before, errors_before = visitor.drawn("layers.map"), visitor.drawn("layers.errors")
    visitor.slide("layers.weight", -2)
    assert visitor.drawn("layers.map") != map_before
    assert visitor.drawn("layers.errors") != errors_before
    query = visitor.query()
    assert query.pop("layer_mapping_strategy") == "custom"
    assert len(query.pop("layer_matrix").split(";")) == 4
    assert query == {"layer": "1", "teacher_layer": "2", "example": "3", "share_dim_proj": "false"}
    visitor.page.get_by_role("button", name="Reset to uniform").click()
    visitor.ready()
    assert visitor.drawn("layers.map") == map_before


def test_sliders_of_time_move_the_ribbons(visitor):
    visitor.open("segments", time_method="linear", segment=1, layer=2)
    before = visitor.drawn("segments.ribbons")
    visitor.slide("control.segments.alpha_map", -2)
    assert visitor.drawn("segments.ribbons") != before
    assert visitor.query() == {
        "time_method": "linear",
        "segment": "1",
        "layer": "2",
        "alpha_map": "1:0.9",
    }
    visitor.keyed("control.switch.target_length").locator("label").first.click()
    visitor.ready()
    own = visitor.drawn("segments.ribbons")
    visitor.slide("control.segments.target_length", -2)
    assert visitor.drawn("segments.ribbons") != own
    assert int(visitor.query()["target_length"]) > 20
    assert visitor.query()["alpha_map"] == "1:0.9"


def test_a_shared_link_shows_the_same_view(visitor, other_visitor):
    text = "Tom has 12 apples.\nHe buys 7 more.\n12 + 7 = 19\n#### 19"
    visitor.open("errors", source="own", text=text, kv_projection_mode="flat", metric="cosine")
    visitor.click_cell("errors.v", 1, 1)
    visitor.switch("Segments")
    visitor.keyed("segments.name").get_by_role("textbox").fill("what is asked")
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_url("**segments=*")
    visitor.ready()
    visitor.switch("K/V errors")
    visitor.page.wait_for_url("**segments=*")
    query = visitor.query()
    assert query["text"] == text
    assert "what%20is%20asked" in query["segments"]
    other_visitor.follow(visitor.page.url)
    assert other_visitor.query() == query
    for _ in range(40):  # icons are loaded late, and count as text
        if other_visitor.text() == visitor.text():
            break
        other_visitor.page.wait_for_timeout(250)
    assert other_visitor.text() == visitor.text()
    for key in ("errors.k", "errors.v", "errors.tokens"):
        assert other_visitor.drawn(key) == visitor.drawn(key)
    other_visitor.page.reload()
    other_visitor.ready()
    assert other_visitor.metrics() == visitor.metrics()
    other_visitor.switch("Segments")
    assert "what is asked" in other_visitor.text()


def test_back_undoes_a_change(visitor):
    visitor.open("errors", part="k", layer=1, head=0)
    heading = visitor.page.get_by_role("heading", name="K, student layer 1, head 0")
    assert heading.is_visible()
    before = visitor.metrics()
    visitor.click_cell("errors.k", 3, 1)
    assert visitor.query() == {"layer": "3", "head": "1"}
    visitor.page.go_back()
    visitor.page.wait_for_url("**layer=1*")
    heading.wait_for()
    visitor.ready()
    assert visitor.query() == {"layer": "1", "head": "0"}
    assert visitor.metrics() == before


def test_the_worst_rows_jump_to_their_head_and_token(visitor):
    visitor.open("attention")
    # The table is a canvas under a scroller: its rows are 35 px high, the mark of the first is at its left end.
    visitor.page.locator(".stDataFrameGlideDataEditor").first.click(position={"x": 18, "y": 52}, force=True)
    visitor.rest()
    visitor.ready()
    query = visitor.query()
    assert {"head", "token"} <= set(query)
    layer = query.get("layer", "0")
    heading = f"Student layer {layer}, query head {query['head']}"
    assert visitor.page.get_by_role("heading", name=heading).is_visible()


def test_the_teacher_writes_and_the_view_holds_what_it_wrote(visitor):
    page = visitor.open("overview", example=2, share_layers="true")
    page.get_by_role("button", name="Let the teacher write the reasoning").click()
    page.get_by_role("button", name="Cancel").wait_for()  # it streams, and can be stopped
    page.get_by_role("button", name="Cancel").wait_for(state="detached", timeout=120_000)
    visitor.ready()
    query = visitor.query()
    assert query["source"] == "own"
    assert query["share_layers"] == "true"
    lines = query["text"].strip().splitlines()
    assert len(lines) > 2
    written = visitor.keyed("control.text").get_by_role("textbox").input_value()
    assert written == query["text"]
    assert lines[0] in visitor.text().replace("⏎", "")


def test_writing_can_be_cancelled(visitor):
    # The teacher never ends this text by itself, so that there is time to click.
    page = visitor.open("overview", source="own", text="1")
    page.get_by_role("button", name="Let the teacher write the reasoning").click()
    page.get_by_role("button", name="Cancel").dispatch_event("click")
    page.get_by_role("button", name="Cancel").wait_for(state="detached")
    visitor.ready()
    assert visitor.query() == {"source": "own", "text": "1"}
