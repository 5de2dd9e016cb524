"""Tokens in reading order: a value at every token under the text, which flows over lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.draft import Draft
from kvviz.figures.heatmap import color_bar, limits
from kvviz.figures.labels import columns, escape, hover_tokens, label, number, visible, x_ticks
from kvviz.figures.theme import MONO_FAMILY, Theme

# Characters on a line of flowing text: 11 px monospace on a page 700 px wide.
LINE = 92
MOST_FLOWING = 600


def ribbon_hover(
    tokens: Sequence[str], segment_ids: Sequence[int], names: Sequence[str] | None = None
) -> list[str]:
    """Hover text (escaped) of each token: position, text and segment. Padding has the segment −1."""

    def name(segment: int) -> str:
        if segment < 0:
            return "padding"
        return (
            label(names[segment], 40) if names is not None and segment < len(names) else f"segment {segment}"
        )

    return [
        f"token {line}<br>{name(int(segment))}"
        for line, segment in zip(hover_tokens(tokens), segment_ids, strict=True)
    ]


def token_values(
    values: np.ndarray,
    tokens: Sequence[str],
    *,
    unit: str,
    theme: Theme,
    selected: int | None = None,
    clip: bool = True,
) -> go.Figure:
    """A value at every token as bars under the text itself, which flows over as many lines as it needs.

    Args:
        values: [T], not negative, in `unit` (plain text). NaN draws no bar and says "no value".
        tokens: T texts. Beyond 600 tokens the text is left to the hover and the axis, on one line.
        selected: position to frame.

    A click on a bar or its token carries `customdata=[position]`. Raises ValueError when the numbers differ.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(tokens),):
        raise ValueError(f"values of shape {values.shape} for {len(tokens)} tokens")
    span = limits(values, clip=clip)
    flowing = len(tokens) <= MOST_FLOWING
    left, width, line = _flow(tokens) if flowing else _one_line(len(tokens))
    lines = int(line.max()) + 1 if len(tokens) else 1
    # One line of text is one unit high: text in the upper 0.36, bars hanging down from 0.4 to at most 0.94.
    tops = line + (0.4 if flowing else 0.0)
    depth = 0.54 if flowing else 0.95
    finite = np.isfinite(values)
    share = np.clip(np.where(finite, values, 0.0) / span.high, 0.0, 1.0)
    hovers = [
        f"token {text}<br>{escape(unit)}: <b>{number(float(value))}</b>"
        for text, value in zip(hover_tokens(tokens), values, strict=True)
    ]
    positions = [[position] for position in range(len(tokens))]

    draft = Draft(theme)
    draft.add(
        "bar",
        name="values",
        x=left + width / 2,
        y=share * depth,
        base=tops,
        width=np.maximum(width - (0.35 if flowing else 0.0), 0.1),
        customdata=positions,
        hovertext=hovers,
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            # Written out: for each bar coloured by a number plotly.js writes a warning to the console, with a trace of the stack.
            "color": [theme.color_at(float(fraction)) for fraction in share],
            "line": {"width": 0.5 if flowing else 0, "color": theme.line},
        },
    )
    # Nothing to see but its colour bar.
    draft.add(
        "scatter",
        name="scale",
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [span.low],
            "cmin": span.low,
            "cmax": span.high,
            "colorscale": [list(stop) for stop in theme.sequential],
            "showscale": True,
            "colorbar": color_bar(span.title(unit), theme, **({} if lines > 3 else {"nticks": 3})),
        },
        hoverinfo="skip",
    )
    if flowing:
        draft.add(
            "scatter",
            name="text",
            x=left + width / 2,
            y=line + 0.2,
            mode="text",
            text=[label(token, 24) for token in tokens],
            textfont={"size": 11, "color": theme.text, "family": MONO_FAMILY},
            customdata=positions,
            hovertext=hovers,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    frames = []
    if selected is not None and 0 <= selected < len(tokens):
        frames.append(
            {"type": "rect", "x0": left[selected], "x1": left[selected] + width[selected]}
            | {"y0": float(line[selected]) + 0.02, "y1": float(line[selected]) + 0.97}
            | {"line": {"color": theme.accent, "width": 2}}
        )
    if flowing:
        axis = {"visible": False, "range": [0, LINE]}
        height, below = max(lines * 56, 150 if span.clipped else 90) + 16, 8
    else:
        ticks, below = x_ticks([str(position) for position in range(len(tokens))], 580)
        axis = {"range": [0, len(tokens)], "title": {"text": "token position"}, "showgrid": False, **ticks}
        height, below = 220 + below, below + 26
    return draft.figure(
        height=height,
        margin={"l": 10, "r": 88, "t": 8, "b": below},
        showlegend=False,
        hovermode="closest",
        dragmode="pan",
        shapes=frames,
        xaxis=dict(fixedrange=True, zeroline=False, **axis),
        yaxis={"visible": False, "range": [max(lines, 2 if flowing else 1), 0], "fixedrange": True},
    )


def _flow(tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left edge and width (characters) and line number of each token; a newline in a token ends its line."""
    left, width, line = np.zeros(len(tokens)), np.zeros(len(tokens)), np.zeros(len(tokens), dtype=int)
    x, row = 0.0, 0
    for position, token in enumerate(tokens):
        needed = max(columns(visible(token, 24)), 1) + 1.0
        if x > 0 and x + needed > LINE:
            x, row = 0.0, row + 1
        left[position], width[position], line[position] = x, needed, row
        x += needed
        if "\n" in token:
            x, row = 0.0, row + 1
    return left, width, line


def _one_line(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.arange(count, dtype=float), np.ones(count), np.zeros(count, dtype=int)
