"""Teacher time onto student time, segment by segment.

A segment is a maximal run of equal ids in reading order; position −1 is padding. Inside a segment of n teacher and m
student positions, student position j reads around the half-pixel centre p = (j + ½)·n/m − ½, as image resizing does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kvviz.align.text import text_warp
from kvviz.align.warp import Warp

__all__ = ["TimeWarper", "Warp", "segment_lengths", "segment_warp", "text_warp"]

Method = Literal["linear", "area"]


def segment_lengths(lengths: Sequence[int], T_s: int, ratios: Sequence[float] | None = None) -> list[int]:
    """Student lengths of segments that have these teacher lengths: shares of T_s proportional to length · ratio, rounded by
    the largest remainder (ties to the earlier segment), so that they sum to T_s exactly.

    Raises ValueError for a negative or non-finite length, ratio or T_s, for lists that do not match, and when nothing is left
    to share T_s > 0 among.
    """
    factors = [1.0] * len(lengths) if ratios is None else [float(ratio) for ratio in ratios]
    if len(factors) != len(lengths):
        raise ValueError(f"{len(lengths)} segments but {len(factors)} ratios")
    if T_s < 0 or any(length < 0 for length in lengths):
        raise ValueError("segment lengths and T_s must not be negative")
    if any(not math.isfinite(factor) or factor < 0 for factor in factors):
        raise ValueError(f"segment ratios must be finite and not negative, got {factors}")
    # Scaled by the largest ratio, so that neither huge nor tiny ratios leave the range of a double.
    largest = max(factors, default=0.0)
    shares = [
        length * (factor / largest) if largest else 0.0
        for length, factor in zip(lengths, factors, strict=True)
    ]
    total = sum(shares)
    if T_s == 0:
        return [0] * len(lengths)
    if total == 0:
        raise ValueError(
            "every segment has length or ratio 0: nothing is left to fill the student's positions"
        )
    exact = [T_s * (share / total) for share in shares]
    result = [math.floor(value) for value in exact]
    # A share that rounding put a hair under a whole number must not lose its place to a true remainder.
    order = sorted(range(len(exact)), key=lambda i: (-round(exact[i] - result[i], 9), i))
    for i in order[: T_s - sum(result)]:
        result[i] += 1
    return result


def segment_warp(
    segment_ids: Tensor,
    T_s: int,
    target_segment_ids: Tensor | None = None,
    ratio_map: Mapping[int, float] | None = None,
    alpha_map: Mapping[int, float] | None = None,
    method: Method = "linear",
) -> Warp:
    """The warp of each sample, from integer ids segment_ids [B, T_t] (below 0: padding) onto T_s student positions.

    Without target ids the runs keep their order and share T_s by `segment_lengths`, with ratio_map[id] (default 1): every
    student position is filled. With target_segment_ids [B, T_s] the student's own runs set the lengths and ratios play no part:
    the k-th run of an id reads the teacher's k-th run of it where both have as many; otherwise its positions read all teacher
    positions of that id, in order; an id the teacher lacks reads the teacher at the same fraction of the text;
    a padding target reads nothing.

    alpha_map[id] in 0…1 (default 1) blends nearest (0) into linear interpolation (1); `area` averages over the teacher
    positions a student position covers wherever a segment is compressed (alpha then plays no part), else it is linear.

    Raises ValueError for wrong shapes, T_s < 1, an alpha outside 0…1, a bad ratio, or an unknown method.
    """
    if method not in ("linear", "area"):
        raise ValueError(f"unknown time method {method!r}: use linear or area")
    if T_s < 1:
        raise ValueError(f"T_s must be at least 1, got {T_s}")
    if any(not 0 <= alpha <= 1 for alpha in (alpha_map or {}).values()):
        raise ValueError(f"alpha must lie in 0…1, got {dict(alpha_map or {})}")
    source_ids = _ids(segment_ids, "segment_ids")
    batch, T_t = source_ids.shape
    target_ids = None if target_segment_ids is None else _ids(target_segment_ids, "target_segment_ids")
    if target_ids is not None and target_ids.shape != (batch, T_s):
        raise ValueError(f"target_segment_ids must be [{batch}, {T_s}], got {list(target_ids.shape)}")

    taps = []
    for sample in range(batch):
        source = np.flatnonzero(source_ids[sample] >= 0)
        ids = source_ids[sample, source]
        if target_ids is None:
            rows = np.arange(T_s if len(source) else 0)
            spans = _spans_by_ratio(ids, T_s, ratio_map or {}) if len(source) else None
        else:
            rows = np.flatnonzero(target_ids[sample] >= 0) if len(source) else np.arange(0)
            spans = _spans_by_target(ids, target_ids[sample, rows]) if len(source) else None
        if spans is None:
            taps.append((rows, np.zeros((0, 1), np.int64), np.zeros((0, 1))))
            continue
        position, weight = _taps(spans, alpha_map or {}, method)
        taps.append((rows, source[spans.order[spans.start[:, None] + position]], weight))

    width = max((position.shape[1] for _, position, _ in taps), default=1)
    index = np.zeros((batch, T_s, width), np.int64)
    weights = np.zeros((batch, T_s, width), np.float32)
    for sample, (rows, position, weight) in enumerate(taps):
        index[sample, rows, : position.shape[1]] = position
        weights[sample, rows, : position.shape[1]] = weight
    return Warp(torch.from_numpy(index), torch.from_numpy(weights), T_t, torch.from_numpy(source_ids >= 0))


class TimeWarper(nn.Module):
    """The v4.0 report's time stage: teacher positions onto student positions, segment by segment, for each sample of a batch.

    ratio_map and alpha_map give a segment id its share of the student's positions (default 1) and its interpolation (0 nearest …
    1 linear, the default). `num_segments` is what the caller expects; ids beyond it are segments like any other.
    """

    def __init__(
        self,
        num_segments: int = 3,
        ratio_map: Mapping[int, float] | None = None,
        alpha_map: Mapping[int, float] | None = None,
        method: Method = "linear",
    ) -> None:
        super().__init__()
        self.num_segments = num_segments
        self.ratio_map = dict(ratio_map or {})
        self.alpha_map = dict(alpha_map or {})
        self.method: Method = method

    def warp(self, segment_ids: Tensor, T_s: int, target_segment_ids: Tensor | None = None) -> Warp:
        """The warp alone, to be made once and applied to queries, keys and values; see `segment_warp`."""
        return segment_warp(segment_ids, T_s, target_segment_ids, self.ratio_map, self.alpha_map, self.method)

    def forward(
        self, x: Tensor, segment_ids: Tensor, T_s: int, target_segment_ids: Tensor | None = None
    ) -> Tensor:
        """x [B, L, H, T_t, D], ids [B, T_t] (and [B, T_s]) → [B, L, H, T_s, D]. Raises ValueError as `segment_warp` does."""
        return self.warp(segment_ids, T_s, target_segment_ids).apply(x)


class _Spans(NamedTuple):
    """For each student position: it is number `rank` of `size` that read order[start : start + length], under an id."""

    order: np.ndarray
    start: np.ndarray
    length: np.ndarray
    rank: np.ndarray
    size: np.ndarray
    ids: np.ndarray


def _ids(ids: Tensor, name: str) -> np.ndarray:
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"{name} must be integers [B, T], got {ids.dtype} {list(ids.shape)}")
    return ids.detach().cpu().to(torch.int64).numpy()


def _runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the maximal runs of equal ids."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))
    return starts, np.diff(starts, append=len(ids))


def _spans_by_ratio(ids: np.ndarray, T_s: int, ratio_map: Mapping[int, float]) -> _Spans:
    starts, lengths = _runs(ids)
    ratios = [ratio_map.get(int(i), 1.0) for i in ids[starts]]
    sizes = np.array(segment_lengths(lengths.tolist(), T_s, ratios))
    run = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(T_s) - (np.cumsum(sizes) - sizes)[run]
    return _Spans(np.arange(len(ids)), starts[run], lengths[run], rank, sizes[run], ids[starts][run])


def _spans_by_target(ids: np.ndarray, target: np.ndarray) -> _Spans:
    N, M = len(ids), len(target)
    # Reading order first; behind it the same positions grouped by id, for ids whose runs do not pair up.
    by_id = np.argsort(ids, kind="stable")
    order = np.concatenate([np.arange(N), by_id])
    # Until an id says otherwise a student position reads the whole text at its own fraction of it.
    start, length = np.zeros(M, np.int64), np.full(M, N)
    rank, size = np.arange(M), np.full(M, M)

    source_starts, source_lengths = _runs(ids)
    target_starts, target_lengths = _runs(target) if M else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    source_runs, target_runs = _grouped(ids[source_starts]), _grouped(target[target_starts])
    positions = _grouped(target)
    for key, runs in target_runs.items():
        if key not in source_runs:
            continue
        if len(runs) == len(source_runs[key]):
            for theirs, ours in zip(source_runs[key], runs, strict=True):
                here = slice(target_starts[ours], target_starts[ours] + target_lengths[ours])
                start[here], length[here] = source_starts[theirs], source_lengths[theirs]
                rank[here], size[here] = np.arange(target_lengths[ours]), target_lengths[ours]
        else:
            places = positions[key]
            start[places] = N + np.searchsorted(ids[by_id], key)
            length[places] = source_lengths[source_runs[key]].sum()
            rank[places], size[places] = np.arange(len(places)), len(places)
    return _Spans(order, start, length, rank, size, target)


def _grouped(ids: np.ndarray) -> dict[int, np.ndarray]:
    """Where each id occurs, in order."""
    values, inverse = np.unique(ids, return_inverse=True)
    places = np.split(
        np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse, minlength=len(values)))[:-1]
    )
    return {int(value): place for value, place in zip(values, places, strict=False)}


def _taps(spans: _Spans, alpha_map: Mapping[int, float], method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Positions within the span and their weights, each [M, K]. All borders are compared in whole numbers, so ties are exact."""
    n, m, j = spans.length, spans.size, spans.rank
    centre = (2 * j + 1) * n - m  # p in units of 1/(2m)
    low = np.clip(centre // (2 * m), 0, n - 1)
    high = np.minimum(low + 1, n - 1)
    linear = np.where(centre < 0, 0.0, (centre - low * 2 * m) / (2 * m))
    nearest = (2 * j + 1) * n // (2 * m) > low
    alpha = np.ones(len(j))
    for key, value in alpha_map.items():
        alpha[spans.ids == key] = value
    toward_high = np.where(high > low, alpha * linear + (1 - alpha) * nearest, 0.0)
    position = np.stack([low, high], axis=1)
    weight = np.stack([1 - toward_high, toward_high], axis=1)
    squeezed = n > m
    if method == "linear" or not squeezed.any():
        return position, weight

    first = j * n // m
    width = int(((-(-(j + 1) * n // m)) - first)[squeezed].max())
    tap = first[:, None] + np.arange(width)
    upper = np.minimum(((j + 1) * n)[:, None], (tap + 1) * m[:, None])
    lower = np.maximum((j * n)[:, None], tap * m[:, None])
    overlap = np.clip(upper - lower, 0, None) / n[:, None]
    area_position = np.minimum(tap, (n - 1)[:, None])
    area_position[~squeezed], overlap[~squeezed] = 0, 0.0
    area_position[~squeezed, :2], overlap[~squeezed, :2] = position[~squeezed], weight[~squeezed]
    return area_position, overlap
