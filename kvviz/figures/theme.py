"""Colours and the plotly template of every figure, once for a light page and once for a dark one.

The paper is transparent, so that a figure sits on whatever background the page has. Near zero a sequential scale
is close to the page's background and grows away from it: on either page strong colour means a large value.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import plotly.graph_objects as go

CLEAR = "rgba(0,0,0,0)"
FONT_FAMILY = "Source Sans 3, Source Sans Pro, Helvetica, Arial, sans-serif"
MONO_FAMILY = "Source Code Pro, DejaVu Sans Mono, Menlo, Consolas, monospace"

# Krzywinski's twelve colours for colour-blind readers, ordered so that neighbours differ in lightness as well as in hue.
# https://mk.bcgsc.ca/colorblind/palettes.mhtml
_SEGMENTS = (
    "#008DF9", "#FFC33B", "#009F81", "#FF5AAF", "#8400CD", "#00C2F9",
    "#E20134", "#00FCCF", "#A40122", "#FFB2FD", "#9F0162", "#FF6E3A",
)  # fmt: skip


def _stops(*colors: str) -> tuple[tuple[float, str], ...]:
    return tuple((index / (len(colors) - 1), color) for index, color in enumerate(colors))


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour written `#rrggbb`. Anything else raises ValueError."""
    if len(color) != 7 or color[0] != "#":
        raise ValueError(f"expected a colour like #1a2b3c, got {color!r}")
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def blend(color: str, background: str, amount: float) -> str:
    """`amount` of `color` over `background` (both `#rrggbb`), as an opaque `#rrggbb`."""
    mixed = (round(amount * c + (1 - amount) * b) for c, b in zip(rgb(color), rgb(background), strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def translucent(color: str, alpha: float) -> str:
    """`color` (`#rrggbb`) with an opacity of `alpha` (0 to 1), as plotly writes it."""
    return "rgba({},{},{},{:g})".format(*rgb(color), alpha)


def readable_on(color: str) -> str:
    """Black or white, whichever has the higher contrast on `color` (WCAG 2.1 relative luminance)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in rgb(color))
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


@dataclass(frozen=True)
class Theme:
    """What a figure needs to know of the page it is drawn on. All colours are `#rrggbb`.

    `sequential` and `diverging` are plotly colour scales: pairs of a position in 0..1 and a colour. `sequential` starts
    at zero, `diverging` has its neutral colour in the middle.
    """

    name: str
    background: str
    text: str
    muted: str
    grid: str
    line: str
    missing: str
    teacher: str
    student: str
    accent: str
    good: str
    bad: str
    key: str
    value: str
    query: str
    baseline: str
    sequential: tuple[tuple[float, str], ...]
    diverging: tuple[tuple[float, str], ...]
    segments: tuple[str, ...] = _SEGMENTS

    @property
    def dark(self) -> bool:
        return colorsys.rgb_to_hls(*(c / 255 for c in rgb(self.background)))[1] < 0.5

    def segment(self, index: int) -> str:
        """Full colour of a segment; the palette starts again after twelve. Padding (a negative index) is muted."""
        return self.segments[index % len(self.segments)] if index >= 0 else self.muted

    def segment_fill(self, index: int) -> str:
        """The same colour, pale (on a dark page: deep) enough to carry `text` on top of it."""
        return blend(self.segment(index), self.background, 0.38 if self.dark else 0.32)

    def part(self, name: str) -> str:
        """Colour of "k", "v" or "q" (either case). Anything else raises KeyError."""
        return {"k": self.key, "v": self.value, "q": self.query}[name.lower()]

    def reversed_sequential(self) -> tuple[tuple[float, str], ...]:
        """`sequential` turned round, for measures whose best value is the largest."""
        return tuple((1 - position, color) for position, color in reversed(self.sequential))

    def color_at(self, fraction: float, scale: tuple[tuple[float, str], ...] | None = None) -> str:
        """The colour at `fraction` (clipped to 0..1) of a scale, the sequential one if none is given."""
        stops = self.sequential if scale is None else scale
        fraction = min(max(fraction, 0.0), 1.0)
        for (low, below), (high, above) in zip(stops, stops[1:], strict=False):
            if fraction <= high:
                return blend(above, below, (fraction - low) / (high - low) if high > low else 0.0)
        return stops[-1][1]

    def layout(self, **changes) -> dict:
        """Keyword arguments for `go.Figure.update_layout`: this theme with `changes` on top.

        The template is set here and nowhere else: importing streamlit replaces plotly's default by one of placeholder
        colours, and a figure without a template of its own would export in them.
        """
        return {
            "template": _template(self),
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "modebar": self.modebar(),
        } | changes

    def modebar(self) -> dict:
        """Colours of plotly's toolbar."""
        return {"bgcolor": CLEAR, "color": self.muted, "activecolor": self.text}


LIGHT = Theme(
    name="light",
    background="#ffffff",
    text="#262730",
    muted="#7d8088",
    grid="#e3e5ea",
    line="#b9bcc5",
    missing="#dcdde1",
    teacher="#0072b2",
    student="#d55e00",
    accent="#d81b60",
    good="#00795b",
    bad="#c0152f",
    key="#00876c",
    value="#c2569b",
    query="#6f5bd1",
    baseline="#9a9da6",
    # cmocean "dense" (Thyng et al. 2016), perceptually uniform, light to dark.
    sequential=_stops(
        "#e6f0f0", "#bfdde5", "#9cc9e2", "#81b4e3", "#739ae4", "#757fdd",
        "#7864ca", "#774aaf", "#71328d", "#641f68", "#501442", "#360e24",
    ),
    diverging=_stops("#053f80", "#2a71b2", "#6aacd0", "#c1ddec", "#f7f7f7", "#fbd0b9", "#ec9274", "#c6413e", "#7a0a24"),
)  # fmt: skip

DARK = Theme(
    name="dark",
    background="#0e1117",
    text="#fafafa",
    muted="#9a9da6",
    grid="#2b2f39",
    line="#4a4f5c",
    missing="#343a47",
    teacher="#56b4e9",
    student="#ffa24d",
    accent="#ff6fa5",
    good="#3fd0a4",
    bad="#ff7081",
    key="#35c9a5",
    value="#f08fcb",
    query="#a798ff",
    baseline="#858994",
    # seaborn "mako" (Waskom 2021), perceptually uniform, dark to light; its black lifted off the page's.
    sequential=_stops("#16121f", "#2e1e3b", "#413d7b", "#37659e", "#348fa7", "#40b7ad", "#8ad9b1", "#def5e5"),
    diverging=_stops("#9fd4ff", "#4ba3e3", "#2567a3", "#1d3a5a", "#23262e", "#5a2c28", "#a8453a", "#e8765f", "#ffc0ad"),
)  # fmt: skip


@cache
def _template(theme: Theme) -> go.layout.Template:
    """The theme as a plotly template; made once, since it is validated entry by entry."""
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.line,
        "zerolinecolor": theme.line,
        "tickcolor": theme.line,
        "tickfont": {"size": 11, "color": theme.text},
        "title": {"font": {"size": 12, "color": theme.text}, "standoff": 6},
        "automargin": False,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT_FAMILY, "size": 12, "color": theme.text},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "colorway": list(theme.segments),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": theme.background,
                "bordercolor": theme.line,
                "align": "left",
                "font": {"size": 12, "color": theme.text, "family": FONT_FAMILY},
            },
            "legend": {"bgcolor": CLEAR, "font": {"size": 11, "color": theme.text}},
        }
    )


def theme(dark: bool) -> Theme:
    """The theme of a dark or of a light page."""
    return DARK if dark else LIGHT
