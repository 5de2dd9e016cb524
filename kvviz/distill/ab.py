"""What an A/B matrix found: each arm's figures over its seeds, with intervals, as a table, Markdown and JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvviz.distill.answers import answered_steps, read_answers
from kvviz.distill.arms import ARMS, BASELINE, ZERO
from kvviz.distill.matrix import Cell, Matrix
from kvviz.distill.run import PROJECTORS, Run

DRAWS = 10_000
AT_ONCE = 1_000  # of the draws, so that their weights stay small
MEASURES = {
    "eval_ce_loss": "held-out CE, nats a token",
    "eval_k_loss": "K error, 1 − cosine",
    "eval_v_loss": "V error, 1 − cosine",
    "eval_attn_loss": "attention KL, nats a row",
    "k_r2": "K, held-out R² of the arm's own map",
    "k_spread": "spread of K",
    "v_spread": "spread of V",
}


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One arm.

    seeds: those that finished. accuracy: over seeds and problems. against_baseline, against_none: paired differences of
    accuracy, None for the arm itself and where the other has no common seed. measures: means over seeds of MEASURES.
    parameters: of the projectors. seconds, cpu_seconds: of the training, medians over seeds; the first depends on what else
    the machine did. expected: what the v4.0 report expects; never measured.
    """

    arm: str
    title: str
    seeds: tuple[int, ...]
    accuracy: Interval | None
    start_accuracy: float | None
    against_baseline: Interval | None
    against_none: Interval | None
    measures: dict[str, float]
    parameters: int | None
    seconds: float | None
    cpu_seconds: float | None
    expected: float | None


@dataclass(frozen=True)
class Table:
    """A matrix's findings; `states` counts its runs by status."""

    name: str
    rows: list[Row]
    states: dict[str, int]
    machine: str = field(default_factory=lambda: machine())


Problem = tuple[
    int, str
]  # its number and its text: where the data changed between two runs, only what is the same is compared
Solved = dict[int, dict[Problem, bool]]  # by seed: whether each problem was solved at the end of the run


@dataclass(frozen=True)
class Result:
    """What a finished run left behind."""

    cell: Cell
    lines: list[dict[str, Any]]
    solved: dict[Problem, bool]


def table(matrix: Matrix) -> Table:
    """Read what is there so far. A run counts once it is finished; one whose files cannot be read counts as unreadable."""
    states: dict[str, int] = {}
    finished: dict[str, list[Result]] = {arm: [] for arm in matrix.config.arms}
    for cell in matrix.cells():
        state = cell.state
        status: str = "not begun" if state is None else state.status
        if status == "finished":
            result = _result(cell)
            if result is None:
                status = "unreadable"
            else:
                finished[cell.arm].append(result)
        states[status] = states.get(status, 0) + 1
    solved = {
        arm: {result.cell.seed: result.solved for result in found if result.solved}
        for arm, found in finished.items()
    }
    rows = [_row(arm, found, solved) for arm, found in finished.items()]
    return Table(matrix.name, rows, states)


def _result(cell: Cell) -> Result | None:
    try:
        lines = cell.run.metrics()
        steps = answered_steps(cell.run)
        last = read_answers(cell.run, steps[-1]) if steps else []
        solved = {(answer["index"], answer["prompt"]): bool(answer["correct"]) for answer in last}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Result(cell, lines, solved) if lines else None


def _row(arm: str, results: Sequence[Result], solved: Mapping[str, Solved]) -> Row:
    last: list[dict[str, Any]] = []
    seconds: list[float] = []
    cpu: list[float] = []
    starts: list[float] = []
    for result in results:
        lines = result.lines
        merged: dict[str, Any] = {}
        for line in lines:
            merged |= {name: value for name, value in line.items() if value is not None}
        last.append(merged)
        seconds.append(lines[-1]["time"] - lines[0]["time"])
        cpu.append(_spent([line["cpu_seconds"] for line in lines if "cpu_seconds" in line]))
        if "accuracy" in lines[0]:
            starts.append(lines[0]["accuracy"])
    measures = {
        name: float(np.mean([line[name] for line in last]))
        for name in MEASURES
        if last and all(name in line for line in last)
    }
    own = solved[arm]
    return Row(
        arm=arm,
        title=ARMS[arm].title,
        seeds=tuple(result.cell.seed for result in results),
        accuracy=_interval([[own[seed]] for seed in own]),
        start_accuracy=float(np.mean(starts)) if starts else None,
        against_baseline=_paired(own, solved.get(BASELINE, {})) if arm != BASELINE else None,
        against_none=_paired(own, solved.get(ZERO, {})) if arm != ZERO else None,
        measures=measures,
        parameters=next((parameters(result.cell) for result in results), None),
        seconds=float(np.median(seconds)) if seconds else None,
        cpu_seconds=float(np.median(cpu)) if cpu else None,
        expected=ARMS[arm].expected,
    )


def _spent(readings: Sequence[float]) -> float:
    """What a clock went on by; a resumed run's begins anew."""
    steps = zip(readings, readings[1:], strict=False)
    return sum(after - before if after >= before else after for before, after in steps)


def _paired(one: Solved, other: Solved) -> Interval | None:
    return _interval([[one[seed], other[seed]] for seed in sorted(set(one) & set(other))])


def _interval(by_seed: Sequence[Sequence[Mapping[Problem, bool]]]) -> Interval | None:
    """Of one run a seed its mean, of two the mean of the first less the second, over the problems that all of them have."""
    runs = [run for runs in by_seed for run in runs]
    problems = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not problems:
        return None
    values = np.array([[[run[problem] for problem in problems] for run in runs] for runs in by_seed], float)
    return mean_interval(values[:, 0] - values[:, 1] if values.shape[1] == 2 else values[:, 0])


def mean_interval(by_seed: Sequence[np.ndarray] | np.ndarray, draws: int = DRAWS) -> Interval:
    """Mean of `[problem]` values over seeds and problems, with a 95% percentile bootstrap.

    Seeds and problems are both drawn anew, and a drawn problem is the same for every seed: it is as hard in each (a two-way
    bootstrap; A. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007). With one seed only problems are.
    """
    values = np.stack([np.asarray(found, dtype=float) for found in by_seed])
    rng = np.random.default_rng(0)
    seeds, problems = values.shape
    means = []
    for first in range(0, draws, AT_ONCE):
        some = min(AT_ONCE, draws - first)
        by_problem = _drawn(rng, seeds, some) @ values
        means.append((by_problem * _drawn(rng, problems, some)).sum(1) / (seeds * problems))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _drawn(rng: np.random.Generator, n: int, draws: int) -> np.ndarray:
    """How often each of n was drawn, in `draws` draws of n with replacement: `[draw, n]`."""
    drawn = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


def gain(run: Run) -> Interval | None:
    """Exact match at a run's last evaluation less that at its start, on the same problems; None before there are two."""
    steps = answered_steps(run)
    if len(steps) < 2 or steps[0] != 0:
        return None
    first, last = (
        np.array([bool(answer["correct"]) for answer in read_answers(run, step)], dtype=float)
        for step in (steps[0], steps[-1])
    )
    return mean_interval([last - first]) if len(first) == len(last) else None


def parameters(cell: Cell) -> int | None:
    """Numbers in the projectors of a run's last checkpoint; None where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    checkpoint = cell.run.latest_checkpoint()
    if checkpoint is None:
        return None
    try:
        with safe_open(checkpoint / PROJECTORS, framework="np") as file:
            names = [name for name in file.keys() if name != "layer_matrix"]  # noqa: SIM118
            shapes = {name: file.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError):
        return None
    return sum(math.prod(shape) for shape in shapes.values())


def machine() -> str:
    """Processor count and kind, for a report."""
    import os

    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def verdict(found: Table) -> list[str]:
    """What the table says of the report's two claims, in sentences, whatever came out."""
    rows = {row.arm: row for row in found.rows}
    sentences = []
    for arm, row in rows.items():
        if arm in (BASELINE, ZERO) or row.accuracy is None:
            continue
        for other, interval in ((BASELINE, row.against_baseline), (ZERO, row.against_none)):
            if interval is None:
                continue
            sentences.append(f"{row.title} against {ARMS[other].title}: {_finding(interval)}")
    baseline = rows.get(BASELINE)
    if baseline is not None and baseline.against_none is not None:
        sentences.append(f"{baseline.title} against {ARMS[ZERO].title}: {_finding(baseline.against_none)}")
    return sentences


def _finding(interval: Interval) -> str:
    points = f"{100 * interval.value:+.1f} points ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    if not interval.excludes_zero:
        return f"{points}, no difference that this matrix can tell from chance."
    return f"{points}, {'better' if interval.value > 0 else 'worse'}."


def as_json(found: Table) -> str:
    """The table as JSON, with the verdict's sentences."""
    return json.dumps(asdict(found) | {"verdict": verdict(found)}, indent=2)


def as_markdown(found: Table, command: str = "") -> str:
    """The table as Markdown: what was measured, then, in a column of its own, what the report expected."""
    head = [
        "arm",
        "seeds",
        "exact match (95%)",
        "against flat",
        "against no KV loss",
        *MEASURES.values(),
        "projector parameters",
        "seconds",
        "CPU seconds",
        "the v4.0 report expected",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found.rows:
        cells = [
            row.title,
            ", ".join(map(str, row.seeds)) or "none yet",
            _share(row.accuracy),
            _points(row.against_baseline),
            _points(row.against_none),
            *(f"{row.measures[name]:.3f}" if name in row.measures else "" for name in MEASURES),
            "" if row.parameters is None else f"{row.parameters:,}",
            "" if row.seconds is None else f"{row.seconds:.0f}",
            "" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}",
            "" if row.expected is None else f"{row.expected:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    starts = [row.start_accuracy for row in found.rows if row.start_accuracy is not None]
    text = [f"# {found.name}", "", *lines, ""]
    if starts:
        text += [f"Before any step the student solved {np.mean(starts):.1%} of the same problems.", ""]
    text += [f"- {sentence}" for sentence in verdict(found)]
    states = ", ".join(f"{count} {status}" for status, count in sorted(found.states.items()))
    text += ["", f"Runs: {states}. Machine: {found.machine}."]
    if command:
        text += ["", f"Command: `{command}`."]
    return "\n".join(text) + "\n"


def _share(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.value:.1%} ({interval.low:.1%} – {interval.high:.1%})"


def _points(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def write(matrix: Matrix, command: str = "") -> Table:
    """Write ab.md and ab.json into the matrix's folder; readers see whole files."""
    found = table(matrix)
    for name, text in (("ab.md", as_markdown(found, command)), ("ab.json", as_json(found))):
        partial: Path = matrix.folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(matrix.folder / name)
    return found
