"""The student head a visitor follows over the pages, and where it comes from in the teacher.

The view holds part, layer and head; an edited address may name ones this pair does not have. Here they become a
head that exists, with its sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from app.view import View, update
from kvviz.align.aligner import Part
from kvviz.align.flat import FlatProjector
from kvviz.align.mixed import head_weights, normalised
from kvviz.geometry import Geometry
from kvviz.inspection import Inspection

if TYPE_CHECKING:
    from app.page import Page

NAMED_SHARE = 0.05  # Sources under this share of a head's weight are counted, not named.
NAMED_SOURCES = 4


@dataclass(frozen=True)
class Selection:
    """A student head of this pair, and what of the teacher it reads.

    heads: (teacher head, share of |weight|), largest first; empty for an elastic projector, which has no weights by
    head. layers: (teacher layer, share) in reading order.
    """

    part: Part
    layer: int
    head: int
    heads: tuple[tuple[int, float], ...]
    layers: tuple[tuple[int, float], ...]

    @property
    def sources(self) -> list[int]:
        """The teacher heads that are named and lit up."""
        return [head for head, share in self.heads[:NAMED_SOURCES] if share >= NAMED_SHARE]


def layer_of(view: View, geometry: Geometry) -> int:
    """The view's student layer, or the last where it names one beyond."""
    return min(view.layer, geometry.layers - 1)


def token_of(view: View, count: int) -> int | None:
    """The view's token, or the last where it names one beyond; None where none is selected."""
    return None if view.token is None else min(view.token, count - 1)


def selection(view: View, inspection: Inspection) -> Selection | None:
    """The selected head, clamped to this pair; None while none is selected."""
    if view.head is None:
        return None
    student = inspection.student
    layer = layer_of(view, student)
    head = min(view.head, student.heads_of(view.part) - 1)
    weights = inspection.layer_matrix[layer].tolist()
    return Selection(
        part=view.part,
        layer=layer,
        head=head,
        heads=head_sources(inspection, view.part, layer, head),
        layers=tuple((index, weight) for index, weight in enumerate(weights) if weight > 0),
    )


def head_sources(inspection: Inspection, part: Part, layer: int, head: int) -> tuple[tuple[int, float], ...]:
    """(teacher head, share of |weight|) of one student head, largest first, those of no weight left out."""
    projector = inspection.aligner.projector(part)
    if isinstance(projector, FlatProjector) and projector.projector.kind == "elastic":
        return ()
    shares = normalised(head_weights(projector, layer))[head].tolist()
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    return tuple((index, shares[index]) for index in order if shares[index] > 0)


def related(chosen: Selection, part: Part, student: Geometry) -> list[int]:
    """The student heads of `part` that belong to the selected head: itself, its KV head, or the query heads it serves."""
    group = student.heads // student.kv_heads
    if (chosen.part == "q") == (part == "q"):
        return [chosen.head]
    if part == "q":
        return list(range(chosen.head * group, (chosen.head + 1) * group))
    return [chosen.head // group]


def select(part: Part, layer: int, head: int) -> None:
    """Follow a head (in a callback)."""
    update(part=part, layer=layer, head=head)


def clear() -> None:
    """Back to all heads (in a callback)."""
    update(head=None, token=None)


def strip(page: Page, empty: str = "") -> None:
    """One line at the top of a page: the selected head, its sources, the next heads and the way back.

    empty: what to do while no head is selected; without it nothing is drawn then.
    """
    chosen = selection(page.view, page.inspection)
    if chosen is None:
        if empty:
            with st.container(border=True):
                st.markdown(f":material/ads_click: {empty}")
        return
    count = page.inspection.student.heads_of(chosen.part)
    with st.container(border=True, horizontal=True, wrap=False, vertical_alignment="center", gap="small"):
        st.markdown(sentence(chosen), width="stretch")
        for icon, step, words in (("chevron_left", -1, "Previous"), ("chevron_right", 1, "Next")):
            st.button(
                "",
                key=f"strip.{words}",
                icon=f":material/{icon}:",
                help=f"{words} {chosen.part.upper()} head of this layer",
                disabled=count == 1,
                on_click=select,
                args=(chosen.part, chosen.layer, (chosen.head + step) % count),
            )
        st.button(
            "All heads", key="strip.clear", icon=":material/close:", help="Back to all heads", on_click=clear
        )


def sentence(chosen: Selection) -> str:
    """The selection in words (Markdown of numbers only)."""
    named = f"**{chosen.part.upper()}, student layer {chosen.layer}, head {chosen.head}**"
    shown = [(head, share) for head, share in chosen.heads if head in chosen.sources]
    if shown:
        left = len(chosen.heads) - len(shown)
        heads = ", ".join(f"{head} ({share:.0%})" for head, share in shown)
        sources = f"teacher head{'s' if len(shown) > 1 else ''} {heads}" + (
            f" and {left} more" if left else ""
        )
    elif chosen.heads:
        sources = f"{len(chosen.heads)} teacher heads, none with {NAMED_SHARE:.0%} of the weight"
    else:
        sources = "all teacher heads (the elastic projector has no weight for each)"
    return f"{named} ← {sources}, {_layers(chosen)}"


def _layers(chosen: Selection) -> str:
    """`in teacher layers 3 (67%), 4 (33%)`; shares are left out where they are equal."""
    if len(chosen.layers) == 1:
        return f"teacher layer {chosen.layers[0][0]}"
    largest = sorted(chosen.layers, key=lambda item: -item[1])[:NAMED_SOURCES]
    even = max(share for _, share in chosen.layers) - min(share for _, share in chosen.layers) < 0.01
    words = ", ".join(f"{layer}" if even else f"{layer} ({share:.0%})" for layer, share in sorted(largest))
    left = len(chosen.layers) - len(largest)
    return f"teacher layers {words}" + (f" and {left} more" if left else "")
