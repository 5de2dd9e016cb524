"""Edits of a text's segments: from a control into the view's spec, through the pure functions of `kvviz.segments`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import streamlit as st
from torch import Tensor

from app.page import plain
from app.view import Side, current, update
from kvviz import segments as editing
from kvviz.inspection import Reading
from kvviz.segments import MAX_SEGMENTS, Segment, match_segments, split_text, to_spec, token_segments
from kvviz.trace import Trace

MESSAGE = "segments.message"


@dataclass(frozen=True, eq=False)
class Edited:
    """One side's text with its segments.

    shared: the id each segment has in common with the other side. tokens `[T]`: the segment of each token, −1 padding.
    """

    side: Side
    text: str
    segments: tuple[Segment, ...]
    shared: list[int]
    trace: Trace
    tokens: Tensor

    @property
    def field(self) -> Literal["segments", "student_segments"]:
        return "segments" if self.side == "teacher" else "student_segments"

    def first(self, index: int) -> int | None:
        """The first token of a segment; None where it is shorter than a token."""
        places = (self.tokens == index).nonzero().flatten()
        return int(places[0]) if len(places) else None

    def last(self, index: int) -> int | None:
        """The last token of a segment; None where it is shorter than a token."""
        places = (self.tokens == index).nonzero().flatten()
        return int(places[-1]) if len(places) else None

    def character(self, token: int) -> int:
        """Where a token begins in the text."""
        assert self.trace.offsets is not None
        return int(self.trace.offsets[0, token, 0])

    def token_at(self, character: int) -> int | None:
        """The first token that begins at a character or after it."""
        assert self.trace.offsets is not None
        spans = self.trace.offsets[0]
        places = ((spans[:, 1] > spans[:, 0]) & (spans[:, 0] >= character)).nonzero().flatten()
        return int(places[0]) if len(places) else None


def sides(reading: Reading) -> dict[Side, Edited]:
    """The texts that have segments of their own: the teacher's, and the student's where it reads another."""
    prompt = reading.prompt
    shared_t, shared_s = match_segments(reading.segments_t, reading.segments_s)
    found: dict[Side, Edited] = {
        "teacher": _edited("teacher", prompt.text, reading.segments_t, shared_t, reading.trace_t)
    }
    if not prompt.same_text:
        found["student"] = _edited(
            "student", prompt.student_text or "", reading.segments_s, shared_s, reading.trace_s
        )
    return found


def _edited(side: Side, text: str, segments: tuple[Segment, ...], shared: list[int], trace: Trace) -> Edited:
    assert trace.offsets is not None
    own = token_segments(segments, trace.offsets[0], trace.attention_mask[0])
    return Edited(side, text, segments, shared, trace, own)


def rename(found: Mapping[Side, Edited], side: Side, index: int, name: str) -> None:
    """A segment gets a name (in a callback, as are all below)."""
    if not name.strip():
        _say("A segment needs a name of at least one character. Nothing was changed.")
        return
    _apply(found, side, index, lambda segments: editing.rename(segments, index, name))


def move(found: Mapping[Side, Edited], side: Side, index: int, character: int) -> None:
    """A segment begins elsewhere; the segment before it grows or shrinks."""
    segments = found[side].segments
    if index == 0:
        _say("The first segment begins where the text begins. Nothing was changed.")
        return
    low, high = segments[index - 1].start + 1, segments[index].end - 1
    if not low <= character <= high:
        _say(
            f"“{segments[index].name}” can begin at characters {low} to {high}, between its neighbours, "
            f"not at {character}. Nothing was changed."
        )
        return
    _apply(found, side, index, lambda segments: editing.move(segments, index, character))


def add(found: Mapping[Side, Edited], side: Side, index: int, character: int, name: str) -> None:
    """A segment is cut in two; the new one begins at `character`."""
    segment = found[side].segments[index]
    if len(found[side].segments) >= MAX_SEGMENTS:
        _say(f"There are {MAX_SEGMENTS} segments, and no more are told apart. Nothing was changed.")
        return
    if not segment.start < character < segment.end:
        _say(f"“{segment.name}” cannot be cut at character {character}. Nothing was changed.")
        return
    new = name.strip() or f"{segment.name} (2)"
    _apply(found, side, index + 1, lambda segments: editing.add(segments, character, new))


def merge(found: Mapping[Side, Edited], side: Side, index: int) -> None:
    """A segment takes in the one after it; the last is taken in by the one before it."""
    kept = min(index, max(len(found[side].segments) - 2, 0))
    _apply(found, side, kept, lambda segments: editing.merge(segments, index))


def forget(found: Mapping[Side, Edited], side: Side) -> None:
    """Back to the segments found in the text."""
    _apply(found, side, 0, lambda _: split_text(found[side].text))


def message() -> None:
    """What the last edit could not do, said once."""
    if words := st.session_state.pop(MESSAGE, None):
        st.warning(words, icon=":material/edit_off:")


def _say(words: str) -> None:
    st.session_state[MESSAGE] = plain(words)


def _apply(
    found: Mapping[Side, Edited],
    side: Side,
    selected: int,
    edit: Callable[[Sequence[Segment]], list[Segment]],
) -> None:
    """Write the edited segments into the view; numbers set for a segment (alpha, ratio) stay with its text."""
    before = found[side]
    after = edit(before.segments)
    spec = "" if after == split_text(before.text) else to_spec(after)
    pairs = {name: list(one.segments) for name, one in found.items()} | {side: after}
    teacher = pairs["teacher"]
    shared = dict(
        zip(("teacher", "student"), match_segments(teacher, pairs.get("student", teacher)), strict=True)
    )
    alignment = current().alignment
    new_id = {}
    for name in reversed(list(found)):  # The teacher's text decides where both sides have an id.
        for segment, identity in reversed(list(zip(found[name].segments, found[name].shared, strict=True))):
            place = max(i for i, one in enumerate(pairs[name]) if one.start <= segment.start)
            new_id[identity] = shared[name][place]
    update(
        alpha_map={new_id.get(i, i): number for i, number in alignment.alpha_map},
        ratio_map={new_id.get(i, i): number for i, number in alignment.ratio_map},
        segment=selected,
        segment_side=side,
        **{before.field: spec},
    )
