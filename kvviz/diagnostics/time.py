"""What the time warp does to each segment and to each teacher token, and what another target length would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from kvviz.align.time import Method, segment_warp
from kvviz.align.warp import Warp
from kvviz.config import AlignmentConfig


@dataclass(frozen=True)
class SegmentTime:
    """One segment under the warp. Counts are of tokens.

    unread: teacher tokens no student token reads. repeated: those that two or more read with weight 0.5 or more each.
    """

    id: int
    name: str
    teacher: int
    student: int
    unread: int
    repeated: int

    @property
    def stretch(self) -> float:
        """Teacher tokens for each student token; NaN where the student has none."""
        return self.teacher / self.student if self.student else nan


def segment_times(warp: Warp, ids_t: Tensor, ids_s: Tensor, names: Mapping[int, str]) -> list[SegmentTime]:
    """Every segment either side has, by id, for the first sample of a warp.

    Args:
        ids_t: `[1, T_t]`, ids_s: `[1, T_s]`, the segment of each position, −1 for padding. names: of each id.
    """
    teacher, student = ids_t[0].cpu(), ids_s[0].cpu()
    unread, repeated = teacher[warp.unread()[0]], teacher[warp.repeated()[0]]
    present = sorted(({int(i) for i in teacher} | {int(i) for i in student}) - {-1})
    return [
        SegmentTime(
            id=segment,
            name=names.get(segment, f"segment {segment}"),
            teacher=int((teacher == segment).sum()),
            student=int((student == segment).sum()),
            unread=int((unread == segment).sum()),
            repeated=int((repeated == segment).sum()),
        )
        for segment in present
    ]


def what_if(config: AlignmentConfig, ids_t: Tensor, T_s: int) -> tuple[Warp, Tensor]:
    """The warp onto a student of T_s positions that has no text of its own, and the segment each position reads, `[1, T_s]`.

    The segments of the teacher's text `[1, T_t]` share the positions by length and ratio. There are no characters to match
    by: the method is linear, unless it is area.

    Raises:
        ValueError: where every segment has ratio 0.
    """
    method: Method = "area" if config.time_method == "area" else "linear"
    warp = segment_warp(ids_t, T_s, None, dict(config.ratio_map), dict(config.alpha_map), method)
    heaviest = warp.weight.argmax(dim=2, keepdim=True)
    read = torch.gather(warp.index, 2, heaviest)[:, :, 0]
    ids_s = ids_t.cpu().gather(1, read)
    return warp, torch.where(warp.weight.sum(dim=2) > 0, ids_s, -1)
