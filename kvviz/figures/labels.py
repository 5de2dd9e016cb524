"""Text in figures: never markup, always visible, never overlapping.

Plotly reads a small HTML of its own in every label and hover, so that text from a prompt or a model is escaped first. Its
templates also replace `%{…}`: text goes into a trace's `text` or `customdata`, never into a template.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

FONT = 11
LONGEST_KEPT = 32  # Characters of a text whose visible form is kept.
_SHOWN = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u2028": "⏎", "\u2029": "¶"}
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_STEPS = (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 200, 250, 256, 400, 500, 512, 1000)


def escape(text: str) -> str:
    """`text` so that plotly (and HTML) shows it as it is: tags and entities become plain characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def visible(text: str, limit: int | None = None) -> str:
    """`text` with its whitespace and control characters shown, at most `limit` characters (the last one then an ellipsis).

    A space is "·", a newline "⏎", other controls their pictures; characters that would turn the reading direction of what
    follows are named ("⟨U+202E⟩"), lone surrogates (which no JSON carries) become "�". The empty string is "∅".
    Not escaped: for `textContent` and for tests; labels use `label`.
    """
    return _of_token(text, limit) if len(text) <= LONGEST_KEPT else _visible(text, limit)


def _visible(text: str, limit: int | None) -> str:
    if not text:
        return "∅"
    shown = "".join(_visible_character(character) for character in text)
    if limit is not None and len(shown) > limit:
        shown = shown[: max(limit - 1, 0)] + "…"
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in shown):
        shown = f"\u2068{shown}\u2069"  # isolated: the words around it stay where they are
    return shown


# A page shows the same tokens many times over, and again at every move of a control.
_of_token = lru_cache(maxsize=1 << 15)(_visible)


def _visible_character(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    if character in _BIDI_CONTROLS:
        return f"⟨U+{ord(character):04X}⟩"
    category = unicodedata.category(character)
    if category == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 32 else f"⟨U+{ord(character):04X}⟩"
    return "�" if category == "Cs" else character


def label(text: str, limit: int | None = 14) -> str:
    """`text` for a plotly label: visible whitespace, cut to `limit` characters, escaped."""
    return escape(visible(text, limit))


def hover_tokens(tokens: Sequence[str]) -> list[str]:
    """One line for each token, escaped: its position and its text in quotes, so that equal tokens stay apart."""
    return [f"{position} “{label(token, 60)}”" for position, token in enumerate(tokens)]


def columns(text: str) -> int:
    """How many narrow columns `text` takes: wide (CJK, emoji) characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def pixels(text: str, font: int = FONT) -> int:
    """Width of plain text in pixels, estimated from above: 0.6 of the font's size for a narrow character."""
    return round(columns(text) * font * 0.6)


def widest(names: Iterable[str], font: int = FONT) -> int:
    """Width in pixels of the widest of `names` (plain text), zero when there are none."""
    return max((pixels(name, font) for name in names), default=0)


def step(count: int, room: float, need: float) -> int:
    """The smallest pleasant n such that every n-th of `count` labels, each `need` pixels long, fits into `room` pixels."""
    if count <= 0 or room <= 0:
        return max(count, 1)
    return next((n for n in _STEPS if n * room / count >= need), count)


def x_ticks(names: Sequence[str], room: float, *, limit: int = 14, font: int = FONT) -> tuple[dict, int]:
    """Ticks at 0, 1, … for `names` along `room` pixels, thinned and turned upright where they would overlap.

    Returns the keyword arguments for a plotly axis and the height in pixels which the labels take. The axis stays numeric:
    equal names on a category axis would fall onto one another.
    """
    shown = [visible(name, limit) for name in names]
    widest_name = widest(shown, font)
    upright = step(len(shown), room, widest_name + 4) > 1 and not all(name.isdigit() for name in shown)
    every = step(len(shown), room, font + 2 if upright else widest_name + 4)
    ticks = _ticks(shown, every, font) | {"tickangle": -90 if upright else 0}
    return ticks, (widest_name if upright else font) + 8


def y_ticks(names: Sequence[str], room: float, *, limit: int = 14, font: int = FONT) -> tuple[dict, int]:
    """Ticks at 0, 1, … for `names` down `room` pixels, thinned. Returns axis arguments and the labels' width in pixels."""
    shown = [visible(name, limit) for name in names]
    every = step(len(shown), room, font + 2)
    return _ticks(shown, every, font) | {"tickangle": 0}, widest(shown, font) + 8


def token_axis(ticks: dict, tokens: Sequence[str]) -> dict:
    """`ticks` (from `x_ticks` or `y_ticks`) of an axis of tokens on which hovers say position and whole token.

    `labelalias` turns a position in a hover into "12 “token”", with T texts for the T² cells of a map. Plotly would take the
    shortened text of a tick instead where one stands at that very position (within a 10,000th of the axis): the ticks stand
    a 4,000th of the axis aside, which nobody sees.
    """
    aside = len(tokens) / 4000
    return ticks | {
        "tickvals": [position + aside for position in ticks["tickvals"]],
        "labelalias": {str(position): line for position, line in enumerate(hover_tokens(tokens))},
    }


def _ticks(shown: Sequence[str], every: int, font: int) -> dict:
    positions = list(range(0, len(shown), every))
    return {
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [escape(shown[position]) for position in positions],
        "tickfont": {"size": font},
        "ticks": "outside",
        "ticklen": 3,
    }


def number(value: float) -> str:
    """A number for a hover or a cell: three significant digits, "no value" for NaN, infinities by name."""
    if value != value:
        return "no value"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3g}".replace("-", "−")
