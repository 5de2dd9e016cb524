"""metrics.jsonl: one line a log, written once and never again; and a reader that follows it as it grows."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kvviz.distill.problems import RunGone, gone_if_missing

FILE = "metrics.jsonl"
# Metrics by which runs can be compared.
Compared = Literal[
    "accuracy",
    "loss",
    "eval_loss",
    "ce_loss",
    "eval_ce_loss",
    "kd_loss",
    "k_loss",
    "eval_k_loss",
    "v_loss",
    "eval_v_loss",
    "attn_loss",
    "eval_attn_loss",
    "k_r2",
    "v_r2",
    "k_spread",
    "v_spread",
    "learning_rate",
    "grad_norm",
]


def append_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Add one line; `time` (seconds since 1970) is filled in. A number that is not finite becomes null.

    Raises:
        ValueError: there is no `step`. RunGone: the folder is not there. OSError: the disk is full.
    """
    if not isinstance(metrics.get("step"), int):
        raise ValueError("a line of metrics needs its step, a whole number")
    line = json.dumps(_plain({"time": time.time(), **metrics}), allow_nan=False) + "\n"
    with gone_if_missing(path.parent):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if _ends_broken(file):
            line = "\n" + line
        # One write: a process that is killed leaves the line whole, or not at all.
        rest = line.encode()
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


class MetricsTail:
    """Follows a metrics.jsonl: each `read` takes in what was added since the last one.

    A step's lines are merged, and so are those of a step that was written again after a resume: the later value of each
    key wins. A last line without its newline is left for the next read.

    Attributes:
        broken: how many complete lines held no metrics and were skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_over()

    def _start_over(self) -> None:
        self.broken = 0
        self._offset = 0
        self._file: tuple[int, int] | None = None
        self._rows: dict[int, dict[str, Any]] = {}

    def read(self) -> list[dict[str, Any]]:
        """All steps so far, in order.

        Raises:
            RunGone: the run's folder is not there.
        """
        self.poll()
        return [dict(self._rows[step]) for step in sorted(self._rows)]

    def poll(self) -> bool:
        """Take in what is new; whether there was any. Starts over where the file was replaced or cut.

        Raises:
            RunGone: the run's folder is not there.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError as error:
            if not self.path.parent.is_dir():
                raise RunGone(self.path.parent) from error
            had = bool(self._rows)
            self._start_over()
            return had
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            restarted = self._file is not None and (identity != self._file or status.st_size < self._offset)
            if restarted:
                self._start_over()
            self._file = identity
            file.seek(self._offset)
            data = file.read()
        complete = data.rfind(b"\n") + 1
        self._offset += complete
        for line in data[:complete].split(b"\n"):
            self._take(line)
        return restarted or complete > 0

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
        except ValueError:
            self.broken += 1
            return
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            self.broken += 1
            return
        self._rows.setdefault(row["step"], {}).update(row)


def _ends_broken(file: int) -> bool:
    """Whether the last line was cut off by a kill or a full disk."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _plain(value: Any) -> Any:
    """JSON's own types: NaN and infinity are none of them, numbers of numpy and torch have `item`."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
