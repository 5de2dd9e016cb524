"""`kvviz runs` and `kvviz stop`: look at runs and end one, from any shell."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvviz.config import ConfigError
from kvviz.distill import launch
from kvviz.distill.run import Run, RunGone, list_runs, runs_root

SHOWN = ("loss", "eval_loss", "accuracy")


def add(commands: Any) -> None:
    """Add the commands and their flags."""
    runs = commands.add_parser("runs", help="list distillation runs with their status")
    runs.set_defaults(run=_runs)
    runs.add_argument(
        "--root", type=Path, default=None, help="their folder; KVVIZ_RUNS or ./runs if left out"
    )
    runs.add_argument("--json", action="store_true", help="print JSON")
    stop = commands.add_parser("stop", help="ask a run to stop, and end it if it does not")
    stop.set_defaults(run=_stop)
    stop.add_argument("folder", type=Path, metavar="DIR", help="the run's folder")
    stop.add_argument(
        "--grace", type=float, default=launch.GRACE_SECONDS, metavar="SECONDS", help="until it is ended (30)"
    )


def describe(run: Run) -> dict[str, Any]:
    """A run in JSON types: its state, what differs from the default configuration, its last metrics.

    Raises:
        RunGone: it is not there.
    """
    state = run.state()
    last: dict[str, Any] = {}
    for row in run.metrics():
        last |= row
    try:
        differences = run.differences()
    except ConfigError:
        differences = {}  # The state says what is wrong with it.
    return {
        "name": run.name,
        "folder": str(run.folder),
        **asdict(state),
        "differences": differences,
        "metrics": last,
    }


def _runs(options: argparse.Namespace) -> int:
    found = []
    for run in list_runs(options.root):
        try:
            found.append(describe(run))
        except RunGone:
            continue  # Deleted between the two looks.
    if options.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print(f"No runs in {options.root or runs_root()}; start one with `kvviz distill`.")
    else:
        print(_table(found))
    return 0


def _stop(options: argparse.Namespace) -> int:
    run = Run(options.folder)
    state = launch.stop(run, options.grace)
    print(f"{run.name}: {state.status}" + (f". {state.message}" if state.message else ""))
    return 0


def _table(found: list[dict[str, Any]]) -> str:
    header = ("run", "status", "step", *SHOWN, "created", "differs from the default in")
    rows = [header, *(_row(entry) for entry in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    for number, entry in reversed(list(enumerate(found, start=1))):
        if entry["status"] in ("failed", "lost"):
            lines[number + 1 : number + 1] = [f"    {line}" for line in entry["message"].splitlines()]
    return "\n".join(lines)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    metrics = entry["metrics"]
    numbers = [f"{metrics[name]:.4g}" if metrics.get(name) is not None else "" for name in SHOWN]
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["created"]))
    differences = " ".join(f"{name}={_short(value)}" for name, value in entry["differences"].items())
    return (
        entry["name"],
        entry["status"],
        f"{entry['step']}/{entry['steps']}",
        *numbers,
        created,
        differences,
    )


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict | list) else str(value)
