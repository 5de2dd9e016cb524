"""Tokens as flowing text, coloured by segment. Characters are escaped: a prompt is never markup."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from kvviz.figures.theme import Theme

SHOWN = 3000  # Tokens drawn one by one; a longer text says how many were left out.


def coloured_tokens(tokens: Sequence[str], ids: Sequence[int], names: dict[int, str], theme: Theme) -> None:
    """Each token in its segment's colour, its position, text and segment in the tooltip."""
    pieces = []
    for position, (token, segment) in enumerate(zip(tokens[:SHOWN], ids[:SHOWN], strict=True)):
        colour = theme.segment_fill(segment) if segment >= 0 else "transparent"
        tip = escape(f"token {position}: {token!r}, {names.get(segment, 'padding')}", quote=True)
        shown = escape(token).replace("\n", "⏎<br>") or "∅"
        pieces.append(
            f'<span title="{tip}" style="background:{colour};border-radius:3px;'
            f'box-shadow:inset -1px 0 0 {theme.background};padding:1px 0">{shown}</span>'
        )
    more = f"<em> … {len(tokens) - SHOWN:,} more tokens</em>" if len(tokens) > SHOWN else ""
    st.html(
        '<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;font-size:0.9rem">'
        f"{''.join(pieces)}{more}</div>"
    )


def legend(names: dict[int, str], theme: Theme) -> None:
    """Which colour is which segment."""
    chips = "".join(
        f'<span style="background:{theme.segment_fill(index)};border-left:4px solid {theme.segment(index)};'
        f'border-radius:3px;padding:1px 8px;margin-right:6px;white-space:nowrap">{escape(name)}</span>'
        for index, name in sorted(names.items())
    )
    st.html(f'<div style="line-height:2;font-size:0.85rem">{chips}</div>')
