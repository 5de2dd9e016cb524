"""What the student wrote at each evaluation, kept beside the metrics: answers/step-000100.jsonl."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kvviz.distill.run import Run


def answers_path(run: Run, step: int) -> Path:
    """The file of one evaluation."""
    return run.folder / "answers" / f"step-{step:06d}.jsonl"


def answered_steps(run: Run) -> list[int]:
    """The steps of the evaluations whose answers are kept, sorted."""
    found = (
        re.fullmatch(r"step-(\d+)\.jsonl", path.name) for path in (run.folder / "answers").glob("*.jsonl")
    )
    return sorted(int(match[1]) for match in found if match)


def read_answers(run: Run, step: int) -> list[dict[str, Any]]:
    """`index`, `prompt`, `expected`, `written` and `correct` of each problem; empty where that evaluation kept none."""
    path = answers_path(run, step)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
