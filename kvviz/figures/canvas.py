"""Large maps in one byte a cell, for the app's canvas component: what it draws, as plain data.

A level of 0 to 254 spans the colour scale evenly; 255 is "no value". At 255 levels a shown value is true to 0.2% of the
scale; a page reads the exact one from its own array after a click.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Bend = Literal["linear", "sqrt", "log"]
MISSING = 255
DECADES = 4


@dataclass(frozen=True)
class CanvasPanel:
    """One map: `levels` uint8 [rows, cols] as from `quantise`, and the plain text of its rows and columns."""

    title: str
    levels: np.ndarray
    row_tokens: Sequence[str]
    col_tokens: Sequence[str]

    def __post_init__(self) -> None:
        if self.levels.dtype != np.uint8 or self.levels.ndim != 2 or self.levels.size == 0:
            raise ValueError(f"expected uint8 [rows, cols], got {self.levels.dtype} {self.levels.shape}")
        if self.levels.shape != (len(self.row_tokens), len(self.col_tokens)):
            raise ValueError(
                f"{len(self.row_tokens)} row and {len(self.col_tokens)} column texts for a map of {self.levels.shape}"
            )


def quantise(values: np.ndarray, low: float, high: float, bend: Bend = "linear") -> np.ndarray:
    """`values` (any shape) as uint8: 0 at `low`, 254 at `high`, beyond them clipped, 255 where not finite.

    `bend` says how levels follow values: evenly, by square root, or by logarithm over four decades below `high`.
    Raises ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    share = np.clip((np.asarray(values, dtype=np.float32) - low) / (high - low), 0.0, 1.0)
    if bend == "sqrt":
        share = np.sqrt(share)
    elif bend == "log":
        share = np.clip(1 + np.log10(np.maximum(share, 10.0**-DECADES)) / DECADES, 0.0, 1.0)
    finite = np.isfinite(share)
    return np.where(finite, np.rint(np.where(finite, share, 0.0) * (MISSING - 1)), MISSING).astype(np.uint8)


def value_at(levels: np.ndarray, low: float, high: float, bend: Bend = "linear") -> np.ndarray:
    """The values which `levels` stand for (the inverse of `quantise`), NaN for "no value". Float64, same shape."""
    levels = np.asarray(levels)
    share = levels.astype(np.float64) / (MISSING - 1)
    if bend == "sqrt":
        share = share**2
    elif bend == "log":
        share = np.where(share > 0, 10.0 ** (-DECADES * (1 - share)), 0.0)
    return np.where(levels == MISSING, np.nan, low + share * (high - low))
