"""What figure tests share: finding a trace, and every piece of text a figure would show."""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go

NASTY = "<b>x</b><script>alert(1)</script>&amp;%{x}"


def trace(figure: go.Figure, name: str):
    """The one trace of that name."""
    found = [one for one in figure.data if one.name == name]
    assert len(found) == 1, [one.name for one in figure.data]
    return found[0]


def texts(figure: go.Figure) -> Iterator[str]:
    """All strings in the figure's JSON, the template left out, however deep they lie."""
    spec = figure.to_plotly_json()
    spec["layout"].pop("template")

    def walk(node) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            for key, value in node.items():
                yield str(key)
                yield from walk(value)
        elif hasattr(node, "tolist"):
            yield from walk(node.tolist())
        elif isinstance(node, (list, tuple)):
            for value in node:
                yield from walk(value)

    yield from walk(spec)


def assert_escaped(figure: go.Figure) -> None:
    """The nasty token is in the figure, and nowhere as markup or inside a template."""
    everything = list(texts(figure))
    assert any("&lt;b&gt;x&lt;/b&gt;" in text for text in everything), "the token is shown nowhere"
    assert not [text for text in everything if "<script" in text or "<b>x" in text]
    spec = figure.to_plotly_json()
    for one in spec["data"]:
        for field in ("hovertemplate", "texttemplate"):
            assert "alert" not in str(one.get(field, "")), f"{field} holds a token"
