"""`python -m tests.distill.fake` is the `kvviz` command with work that only counts, so that a run takes seconds.

The environment says how: FAKE is one of count, deaf (heeds no stop), broken, explained, full (metrics go to a full disk),
or rank1 (rank 1 fails); FAKE_PACE is seconds a step.
"""

import os
import sys
import time
from pathlib import Path

from kvviz.cli import main
from kvviz.commands import distill
from kvviz.distill import slots
from kvviz.distill.run import Run, RunError

KIND = os.environ.get("FAKE", "count")
PACE = float(os.environ.get("FAKE_PACE", "0.02"))


def work(run: Run):
    assert not {"torch", "transformers"} & set(sys.modules) or "RANK" in os.environ
    rank = int(os.environ.get("RANK", "0"))
    if KIND == "broken":
        raise ZeroDivisionError("the fake broke")
    if KIND == "explained":
        raise RunError("What happened.", "Why it did.", "What to do.")
    if KIND == "full":
        (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    if KIND == "rank1" and rank == 1:
        raise ZeroDivisionError("rank one broke")
    steps = run.config.steps
    done = max(run.checkpoints(), default=0)
    for step in range(done + 1, steps + 1):
        time.sleep(PACE)
        if rank > 0:
            (run.folder / f"seen-by-rank-{rank}").touch()
            continue
        run.append({"step": step, "loss": 1 / step})
        run.write_status("running", step=step, steps=steps)
        stopping = KIND != "deaf" and run.stop_requested()
        if step % 5 == 0 or stopping:
            checkpoint(run, step)
        if stopping:
            return "stopped"
    while rank == 0 and KIND == "rank1":
        if run.stop_requested():  # torchrun has noticed that rank 1 is gone.
            return "stopped"
        time.sleep(PACE)
    return "finished"


def checkpoint(run: Run, step: int) -> Path:
    folder = run.checkpoint(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "complete").touch()
    return folder


if __name__ == "__main__":
    distill._work = work
    slots.POLL_SECONDS = 0.1
    sys.exit(main())
