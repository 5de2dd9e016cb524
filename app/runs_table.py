"""The table of all runs: one row each, whatever state its folder is in."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from app.watching import tail
from kvviz.config import ConfigError
from kvviz.distill.problems import RunGone
from kvviz.distill.run import Run, list_runs
from kvviz.distill.status import RunState

MARKS = {
    "queued": "⏳ queued",
    "starting": "🚀 starting",
    "running": "▶ running",
    "stopping": "⏸ stopping",
    "stopped": "⏹ stopped",
    "finished": "✅ finished",
    "failed": "❌ failed",
    "lost": "❓ lost",
}
NOTE = 160  # Characters of a message that a row has room for.


@dataclass(frozen=True, eq=False)
class Entry:
    """A run as the table knows it: state, metrics by step, differences from the default configuration."""

    run: Run
    state: RunState
    rows: Sequence[Mapping[str, Any]]
    differences: Mapping[str, Any]


def entries() -> list[Entry]:
    """All runs, newest first. One that cannot be read is there, and says so; one deleted meanwhile is not."""
    found = []
    for run in list_runs():
        try:
            state = run.state()
            try:
                rows = tail(run).read()
            except OSError as error:
                rows, state = [], _failed(state, f"Its metrics cannot be read: {error}")
            try:
                differences = run.differences()
            except (ConfigError, OSError) as error:
                differences, state = {}, _failed(state, str(error))
            found.append(Entry(run, state, rows, differences))
        except RunGone:
            continue
    return found


def table(found: Sequence[Entry]) -> pd.DataFrame:
    """What the table shows."""
    return pd.DataFrame(
        [
            {
                "Status": MARKS[entry.state.status],
                "Run": entry.run.name,
                "Differs from the default in": spelled(entry.differences),
                "Step": f"{entry.state.step:,} / {entry.state.steps:,}",
                "Exact match": _accuracy(entry.rows),
                "Loss": last(entry.rows, "loss"),
                "Held-out": last(entry.rows, "eval_loss"),
                "Age": age(entry.state.created),
                "Note": entry.state.message.splitlines()[0][:NOTE] if entry.state.message else "",
            }
            for entry in found
        ]
    )


def last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last value of a metric; None where there is none."""
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def spelled(differences: Mapping[str, Any]) -> str:
    """`steps=20 loss_config.alpha_k=0`."""
    words = []
    for name, value in differences.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        words += [f"{name}{'.' if key else ''}{key}={_plain(item)}" for key, item in inner]
    return " ".join(words)


def age(created: float) -> str:
    """How long ago, in the unit a person would say it in."""
    seconds = max(time.time() - created, 0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "just now"


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    row = next((row for row in reversed(rows) if row.get("accuracy") is not None), None)
    if row is None:
        return ""
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    interval = f" ({low:.0%} to {high:.0%})" if low is not None and high is not None else ""
    return f"{row['accuracy']:.0%}{interval}"


def _failed(state: RunState, message: str) -> RunState:
    return RunState("failed", state.step, state.steps, message, created=state.created, updated=state.updated)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
