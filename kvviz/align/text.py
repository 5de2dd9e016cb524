"""The warp between two tokenizations of one text: a student token reads the teacher tokens that share its characters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvviz.align.warp import Warp

# Anchors of tokens without characters that stand before, or after, all tokens that have some.
BEFORE, AFTER = -1, np.iinfo(np.int64).max


def text_warp(offsets_t: Tensor, mask_t: Tensor, offsets_s: Tensor, mask_s: Tensor) -> Warp:
    """Character spans [B, T_t, 2] and [B, T_s, 2] of the same texts, masks [B, T_t] and [B, T_s] → the warp.

    Weights are numbers of shared characters, normalised. A student token whose characters the teacher's tokens leave out reads the
    teacher token nearest to them. A token without characters (BOS and the like, an empty span) reads the teacher's tokens without
    characters at the same place of the text (before it, after it, or between the same two characters), the k-th of m reading
    number ⌊(k+½)·n/m⌋ of n; where the teacher has none there, the nearest token with characters.

    Raises ValueError for shapes that do not fit.
    """
    for offsets, mask in ((offsets_t, mask_t), (offsets_s, mask_s)):
        if offsets.ndim != 3 or offsets.shape[2] != 2 or mask.shape != offsets.shape[:2]:
            raise ValueError(
                f"offsets must be [B, T, 2] and masks [B, T], got {list(offsets.shape)} and {list(mask.shape)}"
            )
    if offsets_t.shape[0] != offsets_s.shape[0]:
        raise ValueError(f"{offsets_t.shape[0]} teacher texts but {offsets_s.shape[0]} student texts")
    source = mask_t.detach().cpu().bool()
    spans_t, spans_s = (o.detach().cpu().to(torch.int64).numpy() for o in (offsets_t, offsets_s))
    keep_s = mask_s.detach().cpu().bool().numpy()
    samples = [_sample(spans_t[b], source[b].numpy(), spans_s[b], keep_s[b]) for b in range(len(spans_t))]
    width = max((position.shape[1] for _, position, _ in samples), default=1)
    index = np.zeros((*keep_s.shape, width), np.int64)
    weights = np.zeros((*keep_s.shape, width), np.float32)
    for b, (rows, position, weight) in enumerate(samples):
        index[b, rows, : position.shape[1]] = position
        weights[b, rows, : position.shape[1]] = weight
    return Warp(torch.from_numpy(index), torch.from_numpy(weights), spans_t.shape[1], source)


class _Side(NamedTuple):
    """One tokenization: its tokens with characters and the stretch of text each holds, and those without, by anchor."""

    places: np.ndarray
    start: np.ndarray
    end: np.ndarray
    bare: dict[int, np.ndarray]


def _side(spans: np.ndarray, keep: np.ndarray) -> _Side:
    kept = np.flatnonzero(keep)
    has_text = spans[kept, 1] > spans[kept, 0]
    places, bare = kept[has_text], kept[~has_text]
    # Spans in reading order do not go back; a tokenizer that let them would break the searches below, so they are made not to.
    end = np.maximum.accumulate(spans[places, 1])
    start = np.minimum.accumulate(spans[places, 0][::-1])[::-1]
    following = np.searchsorted(places, bare)
    anchors = np.full(len(bare), BEFORE)
    if len(places):
        inside = (following > 0) & (following < len(places))
        anchors[inside] = end[following[inside] - 1]
        anchors[following == len(places)] = AFTER
    groups = {int(anchor): bare[anchors == anchor] for anchor in np.unique(anchors)}
    return _Side(places, *_shared_out(start, end), groups)


def _shared_out(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans in fractions of characters: byte-level tokenizers give the pieces of one character (an emoji) the same span; each
    then holds its part of it, in order, so that a tokenization matches itself token by token."""
    rank = np.arange(len(start))

    def holders(character: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = np.searchsorted(end, character, side="right")
        return rank - first, np.searchsorted(start, character, side="right") - first

    before, among = holders(start)
    before_last, among_last = holders(end - 1)
    return start + before / among, (end - 1) + (before_last + 1) / among_last


def _sample(
    spans_t: np.ndarray, keep_t: np.ndarray, spans_s: np.ndarray, keep_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student rows with their teacher positions and weights, each [rows, K]."""
    teacher, student = _side(spans_t, keep_t), _side(spans_s, keep_s)
    rows, all_theirs = np.flatnonzero(keep_s), np.flatnonzero(keep_t)
    if not len(all_theirs) or not len(rows):
        return rows[:0], np.zeros((0, 1), np.int64), np.zeros((0, 1))

    if not len(teacher.places):
        # The teacher has no characters at all: its tokens in order, at the same fraction.
        return rows, _in_order(all_theirs, len(rows)), np.ones((len(rows), 1))

    position = np.zeros((len(spans_s), 1), np.int64)
    weight = np.zeros((len(spans_s), 1))
    left_out = np.zeros(len(spans_s), bool)
    if len(student.places):
        first = np.searchsorted(teacher.end, student.start, side="right")
        last = np.searchsorted(teacher.start, student.end, side="left")
        width = max(int((last - first).max()), 1)
        tap = first[:, None] + np.arange(width)
        inside = tap < last[:, None]
        tap = np.minimum(tap, len(teacher.places) - 1)
        shared = np.minimum(teacher.end[tap], student.end[:, None]) - np.maximum(
            teacher.start[tap], student.start[:, None]
        )
        shared = np.where(inside, np.clip(shared, 0, None), 0.0)
        total = shared.sum(axis=1, keepdims=True)
        uncovered = total[:, 0] == 0
        tap[uncovered, 0] = _nearest(teacher, student.start[uncovered], student.end[uncovered])
        shared[uncovered, 0] = total[uncovered] = 1.0
        left_out[student.places[uncovered]] = True
        position, weight = np.zeros((len(spans_s), width), np.int64), np.zeros((len(spans_s), width))
        position[student.places], weight[student.places] = teacher.places[tap], shared / total

    for anchor, places in student.bare.items():
        theirs = teacher.bare.get(anchor)
        if theirs is None:
            at = np.array([anchor])
            theirs = teacher.places[_nearest(teacher, at, at)]
        position[places, :1] = _in_order(theirs, len(places))
        weight[places, 0] = 1.0
    # A student token before may read a teacher's token without characters that stands beyond the nearest edge.
    furthest = np.maximum.accumulate(np.where(weight > 0, position, 0).max(axis=1))
    position[left_out, 0] = furthest[left_out]
    return rows, position[rows], weight[rows]


def _in_order(theirs: np.ndarray, m: int) -> np.ndarray:
    """Which of n teacher positions each of m student positions reads, [m, 1]: number ⌊(k+½)·n/m⌋ for the k-th."""
    return theirs[(2 * np.arange(m) + 1) * len(theirs) // (2 * m)][:, None]


def _nearest(teacher: _Side, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which of the teacher's tokens with characters lies nearest, edge to edge, to stretches of text that it leaves out, or to
    places between two characters (start = end). Distances between middles would not keep reading order."""
    right = np.searchsorted(teacher.end, start, side="right")
    left, right = np.maximum(right - 1, 0), np.minimum(right, len(teacher.places) - 1)
    # Halved, so that the place after all text does not overflow.
    take_left = start / 2 + end / 2 <= teacher.end[left] / 2 + teacher.start[right] / 2
    return np.where(take_left, left, right)
