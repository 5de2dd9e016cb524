"""Segments: the parts of a text that correspond between teacher and student (prompt, reasoning steps, answer).

A segmentation is a list of character spans that are contiguous, in order, not empty and cover the text; every function here
keeps it so. (An empty text has one empty segment.)
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import cast, get_args
from urllib.parse import quote, unquote

import torch
from torch import Tensor

from kvviz.split import MAX_SEGMENTS, Kind, Segment, split_text

__all__ = [
    "MAX_SEGMENTS",
    "Kind",
    "Segment",
    "add",
    "from_spec",
    "match_segments",
    "merge",
    "move",
    "rename",
    "split_text",
    "to_spec",
    "token_segments",
]

KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_NAME = 80


# --- edits a person makes on the page -------------------------------------------------------------


def move(segments: Sequence[Segment], i: int, new_start: int) -> list[Segment]:
    """Segment i begins at new_start, clamped so that it and its neighbour before keep at least one character each.

    The first segment stays at 0. Raises IndexError where there is no segment i.
    """
    result = _editable(segments, i)
    if i > 0:
        border = min(max(new_start, result[i - 1].start + 1), result[i].end - 1)
        result[i - 1] = replace(result[i - 1], end=border)
        result[i] = replace(result[i], start=border)
    return result


def add(segments: Sequence[Segment], at: int, name: str) -> list[Segment]:
    """A new segment from character `at` (clamped into the text) to the end of the segment it cuts, whose kind it takes.

    Where a segment begins there already, that segment is renamed.
    """
    result = list(segments)
    at = min(max(at, 0), max(result[-1].end - 1, 0))
    i = _at(result, at)
    if result[i].start == at:
        return rename(result, i, name)
    cut = replace(result[i], name=_clean(name) or result[i].name, start=at)
    result[i : i + 1] = [replace(result[i], end=at), cut]
    return result


def merge(segments: Sequence[Segment], i: int) -> list[Segment]:
    """Segment i and the one after it (for the last: the one before it) become one, with the name and kind of the earlier.

    Raises IndexError where there is no segment i.
    """
    result = _editable(segments, i)
    if len(result) > 1:
        i = min(i, len(result) - 2)
        result[i : i + 2] = [replace(result[i], end=result[i + 1].end)]
    return result


def rename(segments: Sequence[Segment], i: int, name: str) -> list[Segment]:
    """Segment i gets a name: on one line, at most 80 characters; an empty one changes nothing.

    Raises IndexError where there is no segment i.
    """
    result = _editable(segments, i)
    result[i] = replace(result[i], name=_clean(name) or result[i].name)
    return result


def _editable(segments: Sequence[Segment], i: int) -> list[Segment]:
    if not 0 <= i < len(segments):
        raise IndexError(f"there is no segment {i}: there are {len(segments)}")
    return list(segments)


def _at(segments: Sequence[Segment], character: int) -> int:
    return max(bisect_right([segment.start for segment in segments], character) - 1, 0)


def _clean(name: str) -> str:
    # Lone surrogates cannot be written into a URL.
    name = name.encode("utf-8", "replace").decode("utf-8")
    return " ".join(name.split())[:MAX_NAME].strip()


# --- the URL --------------------------------------------------------------------------------------


def to_spec(segments: Sequence[Segment]) -> str:
    """One line for the URL: `prompt:0;step%201:118;…`, names percent-encoded; the kind follows as a third field where the name
    does not say it."""
    return ";".join(
        f"{quote(segment.name, safe='')}:{segment.start}"
        + ("" if segment.kind == _kind_of(segment.name) else f":{segment.kind}")
        for segment in segments
    )


def from_spec(spec: str, text: str) -> list[Segment]:
    """The segmentation of `text` that `to_spec` wrote. Raises ValueError naming the part that makes no sense."""
    found: list[tuple[str, int, Kind]] = []
    for number, part in enumerate(spec.split(";"), start=1):
        where = f"segment {number} ({part[:MAX_NAME]!r})"
        fields = part.split(":")
        if len(fields) not in (2, 3):
            raise ValueError(f"{where}: expected name:start or name:start:kind")
        try:
            name = _clean(unquote(fields[0], errors="strict"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: the name is not percent-encoded UTF-8") from error
        if not name:
            raise ValueError(f"{where}: the name is empty")
        if not re.fullmatch(r"[0-9]{1,12}", fields[1]):
            raise ValueError(f"{where}: the start is not a whole number")
        kind = fields[2] if len(fields) == 3 else _kind_of(name)
        if kind not in KINDS:
            raise ValueError(f"{where}: the kind is not one of {', '.join(KINDS)}")
        start = int(fields[1])
        if not found and start != 0:
            raise ValueError(f"{where}: the first segment must start at 0")
        if found and start <= found[-1][1]:
            raise ValueError(f"{where}: it must start after the segment before it")
        if start and start >= len(text):
            raise ValueError(f"{where}: the text has only {len(text)} characters")
        found.append((name, start, cast(Kind, kind)))
    ends = [start for _, start, _ in found[1:]] + [len(text)]
    return [Segment(name, start, end, kind) for (name, start, kind), end in zip(found, ends, strict=True)]


def _kind_of(name: str) -> Kind:
    """The kind that the names given by `split_text` stand for."""
    found = re.fullmatch(r"(prompt|step|answer)( [0-9]+)?", name)
    return cast(Kind, found[1]) if found else "text"


# --- tokens and the other model -------------------------------------------------------------------


def token_segments(segments: Sequence[Segment], offsets: Tensor, mask: Tensor) -> Tensor:
    """Which segment each token belongs to: character spans [T, 2] and mask [T] → LongTensor [T] of indices into `segments`.

    A token on a border belongs where its middle character lies; a token without characters goes with the token before it, at the
    beginning with the first one that has some. Padding is −1. Raises ValueError for shapes that do not fit.
    """
    if offsets.ndim != 2 or offsets.shape[1] != 2 or mask.shape != offsets.shape[:1]:
        raise ValueError(
            f"offsets must be [T, 2] and mask [T], got {list(offsets.shape)} and {list(mask.shape)}"
        )
    offsets, keep = offsets.detach().cpu().long(), mask.detach().cpu().bool()
    starts = torch.tensor([segment.start for segment in segments])
    ids = torch.full((len(keep),), -1)
    held = keep & (offsets[:, 1] > offsets[:, 0])
    ids[held] = torch.bucketize(offsets[held].sum(dim=1) // 2, starts, right=True).sub(1).clamp(min=0)
    if held.any():
        ids[: int(held.nonzero()[0])] = ids[held][0]
    elif len(ids):
        ids[0] = 0
    # Segments never go back; this also gives bare tokens the segment of the token before them.
    return ids.cummax(dim=0).values.masked_fill(~keep, -1) if len(ids) else ids


def match_segments(teacher: Sequence[Segment], student: Sequence[Segment]) -> tuple[list[int], list[int]]:
    """Ids for the segments of both sides; equal ids correspond, and ids rise in reading order on both sides.

    Runs of one kind (prompt, steps, answer, text) are matched in order; inside a matched run of n and m segments min(n, m) ids are
    shared out evenly, so that several steps of the longer side share one. A run without a partner keeps ids of its own; if no
    run has one, the texts correspond as a whole.
    """
    runs_t, runs_s = _kind_runs(teacher), _kind_runs(student)
    kinds_t, kinds_s = [kind for kind, _ in runs_t], [kind for kind, _ in runs_s]
    blocks = SequenceMatcher(None, kinds_t, kinds_s, autojunk=False).get_matching_blocks()
    if not any(block.size for block in blocks):
        return [0] * len(teacher), [0] * len(student)
    ids_t: list[int] = []
    ids_s: list[int] = []
    next_id = 0
    done_t = done_s = 0
    for block in blocks:
        for ids, runs in ((ids_t, runs_t[done_t : block.a]), (ids_s, runs_s[done_s : block.b])):
            alone = sum(size for _, size in runs)
            ids += range(next_id, next_id + alone)
            next_id += alone
        pairs = zip(
            runs_t[block.a : block.a + block.size], runs_s[block.b : block.b + block.size], strict=True
        )
        for (_, n), (_, m) in pairs:
            shared = min(n, m)
            ids_t += [next_id + i * shared // n for i in range(n)]
            ids_s += [next_id + i * shared // m for i in range(m)]
            next_id += shared
        done_t, done_s = block.a + block.size, block.b + block.size
    return ids_t, ids_s


def _kind_runs(segments: Sequence[Segment]) -> list[tuple[Kind, int]]:
    return [(kind, len(list(run))) for kind, run in groupby(segments, key=lambda segment: segment.kind)]
