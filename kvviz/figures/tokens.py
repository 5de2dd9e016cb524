"""Tokens as boxes in reading order: one line for the ribbon, flowing lines for a value at every token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from kvviz.figures.heatmap import STEADY, clicks, color_bar, limits
from kvviz.figures.labels import columns, escape, hover_tokens, label, number, visible, x_ticks
from kvviz.figures.theme import MONO_FAMILY, Theme, readable_on

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


def token_ribbon(
    tokens: Sequence[str],
    segment_ids: Sequence[int],
    *,
    theme: Theme,
    names: Sequence[str] | None = None,
    height: int = 74,
) -> go.Figure:
    """One line of equally wide boxes, one for each token, coloured by segment.

    Args:
        tokens: T texts. segment_ids: T indices into `names`; −1 is padding.
        names: the segments' names for the hover.

    The text of a token is written into its box while there are at most 40. A click carries `customdata=[position]`.
    Raises ValueError when tokens and ids differ in number.
    """
    count = len(tokens)
    if count != len(segment_ids):
        raise ValueError(f"{count} tokens, but {len(segment_ids)} segment ids")
    fills = [theme.segment(int(segment)) for segment in segment_ids]
    figure = go.Figure()
    figure.add_bar(
        name="tokens",
        x=list(range(count)),
        y=[1] * count,
        width=[1.0] * count,
        marker={"color": fills, "line": {"color": theme.background, "width": 1 if count <= 300 else 0}},
        customdata=clicks(range(count)),
        **STEADY,
        hovertext=ribbon_hover(tokens, segment_ids, names),
        hovertemplate="%{hovertext}<extra></extra>",
        **(
            {
                "text": [label(token, 8) for token in tokens],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textfont": {"size": 11, "color": [readable_on(fill) for fill in fills]},
                "constraintext": "none",
                "textangle": -90 if count > 12 else 0,
            }
            if count <= 40
            else {}
        ),
    )
    ticks, below = x_ticks([str(position) for position in range(count)], 660)
    figure.update_layout(
        theme.layout(
            height=height + (30 if 12 < count <= 40 else 0),
            margin={"l": 10, "r": 10, "t": 4, "b": below + 24},
            showlegend=False,
            bargap=0,
            clickmode="event+select",
            hovermode="closest",
            dragmode="pan",
        )
    )
    figure.update_xaxes(
        range=[-0.5, max(count, 1) - 0.5],
        title={"text": "token position", "standoff": 2},
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        **ticks,
    )
    figure.update_yaxes(visible=False, range=[0, 1], fixedrange=True)
    return figure


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
    positions = clicks(range(len(tokens)))

    figure = go.Figure()
    figure.add_bar(
        name="values",
        x=left + width / 2,
        y=share * depth,
        base=tops,
        width=np.maximum(width - (0.35 if flowing else 0.0), 0.1),
        customdata=positions,
        **STEADY,
        hovertext=hovers,
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "color": np.where(finite, values, 0.0),
            "cmin": span.low,
            "cmax": span.high,
            "colorscale": [list(stop) for stop in theme.sequential],
            "showscale": True,
            "colorbar": color_bar(span.title(unit), theme, **({} if lines > 3 else {"nticks": 3})),
            "line": {"width": 0.5 if flowing else 0, "color": theme.line},
        },
    )
    if flowing:
        figure.add_scatter(
            name="text",
            x=left + width / 2,
            y=line + 0.2,
            mode="text",
            text=[label(token, 24) for token in tokens],
            textfont={"size": 11, "color": theme.text, "family": MONO_FAMILY},
            selected={"textfont": {"color": theme.text}},
            unselected={"textfont": {"color": theme.text}},
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
    # Assigned whole: plotly's update methods check every entry several times.
    figure.layout = theme.layout(
        height=height,
        margin={"l": 10, "r": 88, "t": 8, "b": below},
        showlegend=False,
        clickmode="event+select",
        hovermode="closest",
        dragmode="pan",
        shapes=frames,
        xaxis=dict(fixedrange=True, zeroline=False, **axis),
        yaxis={"visible": False, "range": [max(lines, 2 if flowing else 1), 0], "fixedrange": True},
    )
    return figure


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
