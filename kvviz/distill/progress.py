"""How fast a run is and how long it will still take, from its metrics alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

WINDOW = 12  # Logs that count: a machine's load changes.
PAUSE = 10.0  # A gap that many times the usual one is the time between a stop and a resume.


@dataclass(frozen=True)
class Pace:
    """Seconds for one step, evaluations included, and text tokens trained on in a second; None before two logs."""

    seconds_step: float | None = None
    tokens_second: float | None = None

    def left(self, step: int, steps: int) -> float | None:
        """Seconds until the last step; None while nothing is known."""
        return None if self.seconds_step is None else max(steps - step, 0) * self.seconds_step


def pace(rows: Sequence[Mapping[str, Any]]) -> Pace:
    """The pace over the last logs; the gap of a stop and a resume is left out."""
    timed = [row for row in rows if _finite(row.get("time"))][-WINDOW - 1 :]
    gaps = [
        (after["step"] - before["step"], after["time"] - before["time"], _tokens(before, after))
        for before, after in zip(timed, timed[1:], strict=False)
        if after["step"] > before["step"] and after["time"] > before["time"]
    ]
    if not gaps:
        return Pace()
    usual = median(seconds / steps for steps, seconds, _ in gaps)
    kept = [gap for gap in gaps if gap[1] / gap[0] <= PAUSE * usual]
    seconds = sum(gap[1] for gap in kept)
    counted = [gap for gap in kept if gap[2] is not None]
    tokens = sum(gap[2] for gap in counted if gap[2] is not None)
    return Pace(
        seconds_step=seconds / sum(gap[0] for gap in kept),
        tokens_second=tokens / sum(gap[1] for gap in counted) if counted else None,
    )


def _tokens(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Tokens between two logs; before the first step none were seen."""
    if "tokens_seen" not in after:
        return None
    start = before.get("tokens_seen", 0 if before["step"] == 0 else None)
    return None if start is None or after["tokens_seen"] < start else after["tokens_seen"] - start


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
