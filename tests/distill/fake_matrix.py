"""`python -m tests.distill.fake_matrix` is `kvviz` with the fake work, in a matrix's queue and in the runs it starts.

FAKE_FAILS is a part of the name of the runs that fail. A run that ends leaves answers: by its seed, one or two of four right.
"""

import json
import os
import sys

from kvviz.cli import main
from kvviz.commands import distill
from kvviz.distill import launch, matrix, slots
from kvviz.distill.answers import answers_path
from tests.distill import fake

PROGRAM = (sys.executable, "-m", "tests.distill.fake_matrix")
FAILS = os.environ.get("FAKE_FAILS", "none of them")


def work(run):
    if FAILS in run.name:
        raise ZeroDivisionError("the fake broke")
    result = fake.work(run)
    if result == "finished":
        path = answers_path(run, run.config.steps)
        path.parent.mkdir(exist_ok=True)
        right = 1 + run.config.seed % 2
        rows = ({"index": i, "prompt": f"problem {i}", "correct": i < right} for i in range(4))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return result


if __name__ == "__main__":
    distill._work = work
    launch.PROGRAM = PROGRAM
    matrix.POLL_SECONDS = slots.POLL_SECONDS = 0.1
    sys.exit(main())
