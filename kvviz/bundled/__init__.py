"""The pair that comes with kvviz: a teacher and a student trained on word problems, and the problems themselves."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from kvviz.bundled.problems import Problem, problems
from kvviz.bundled.tokenizers import Role

EXAMPLE_SEED = 41  # of the examples a person chooses from; no evaluation uses it
HERE = Path(__file__).parent


def path(role: Role) -> Path:
    """The folder of a bundled model: config.json, model.safetensors and tokenizer.json.

    Raises ValueError for a role other than "teacher" and "student".
    """
    if role not in ("teacher", "student"):
        raise ValueError(f"role must be 'teacher' or 'student', not {role!r}")
    return HERE / role


def card() -> dict[str, Any]:
    """How the two were trained and how good they are, as written by `python -m kvviz.bundled.train`."""
    return json.loads((HERE / "card.json").read_text(encoding="utf-8"))


@cache
def examples() -> list[Problem]:
    """Twenty-four held-out problems to look at."""
    return problems(24, "heldout", EXAMPLE_SEED)
