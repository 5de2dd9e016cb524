"""A prompt is a text: in the page, in hovers, in labels, in names of segments."""

from __future__ import annotations

import pytest

TEXT = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\n"
    '"><svg onload="window.hacked = 1"> <b>bold</b> **strong** [link](javascript:window.hacked=1)\n'
    "$x^2$ :red[red] `code` &lt;b&gt; %{y} שלום עולם 👩‍👩‍👧 ﷽ \u202e#### 7"
)
NAME = "%3Cimg src%3Dx onerror%3D'window.hacked%3D1'%3E **n**"
INJECTED = """() => [
    window.hacked,
    ...[...document.querySelectorAll(
        'img[src="x"], svg[onload], a[href^="javascript"], [onerror], script:not([src])'
    )].map(found => found.outerHTML).filter(html => html.includes('hacked')),
].filter(found => found !== undefined)"""
FIGURES = {
    "overview": [],
    "layers": [],
    "segments": ["segments.ribbons", "segments.matrix"],
    "heads": [],
    "errors": ["errors.tokens", "errors.matrices"],
    "attention": ["attention.tokens", "attention.maps"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_of_a_prompt_is_run_or_drawn_as_markup(visitor, name):
    page = visitor.open(
        name, source="own", text=TEXT, segments=f"{NAME}:0;rest:80", part="q", layer=0, head=0, token=3
    )
    assert page.get_by_test_id("stAlertContentError").count() == 0
    for key in FIGURES[name]:
        chart = visitor.plot(key)
        box = chart.bounding_box()
        # Over the whole figure in a few steps, so that hovers of many marks are drawn.
        for share in (0.15, 0.3, 0.5, 0.7):
            page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] * share)
            page.wait_for_timeout(120)
    visitor.rest()
    assert page.evaluate(INJECTED) == []
    if name == "overview":
        shown = page.locator("span[title^='token ']").all_inner_texts()
        text = "".join(shown).replace("⏎", "").replace("\n", "")
        assert "<script>window.hacked = 1</script>" in text
        assert "**strong** [link](javascript:window.hacked=1)" in text
        assert "$x^2$ :red[red] `code` &lt;b&gt;" in text
    if name == "segments":
        assert "<img src=x onerror='window.hacked=1'> **n**" in visitor.text()


@pytest.mark.parametrize(("name", "key"), [("errors", "errors.tokens"), ("attention", "attention.tokens")])
def test_a_hover_shows_a_token_as_it_is(visitor, name, key):
    visitor.open(name, source="own", text="<b>7</b> & <i>8</i>", part="q", layer=0, head=0)
    places = visitor.plot(key).evaluate(
        "plot => { const {x, y} = plot._fullData.find(trace => trace.name === 'text'); return [...x].map((at, i) => [at, y[i]]); }"
    )
    hovers = [visitor.hover(key, *place) for place in places[:4]]
    assert hovers[0].startswith("token 0 “<")
    assert not any("&lt;" in words for words in hovers), "escaped once, not twice"
