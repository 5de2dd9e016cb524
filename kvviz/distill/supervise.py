"""A run's process, from the queue to its end: whatever happens, the folder says so.

queued → (slot) → starting → work → finished | stopped | failed
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from kvviz.distill import slots
from kvviz.distill.log import log_to
from kvviz.distill.problems import RunBusy, RunError, RunGone
from kvviz.distill.process import ProcessMark
from kvviz.distill.ranks import Ranks
from kvviz.distill.run import Run
from kvviz.distill.status import RANK_ERROR, disk_is_full, locked, rank_errors, read_state
from kvviz.errors import ExplainedError

Work = Callable[[Run], Literal["finished", "stopped"]]

MESSAGE_CHARACTERS = 2_000
# One Ctrl-C can reach a process twice, from the terminal and from torchrun: only a later signal is a second one.
SAME_SIGNAL_SECONDS = 1.0


class _Ended(BaseException):
    """A second signal: no time for anything."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def claim(run: Run, *, force: bool = False) -> None:
    """Make this process the run's own; a stop that was asked of an earlier process counts no more.

    Raises:
        RunBusy: another process lives, or may live on another host (and not `force`). RunGone: the folder is not there.
    """
    me = ProcessMark.of()
    with locked(run.folder):
        state = read_state(run.folder)
        mine = state.process is not None and state.process.pid == me.pid and state.process.find() is not None
        if state.process is not None and not mine:
            refuse_if_alive(run, "start", force=force)
        if not state.alive:
            run.clear_stop()
        if not mine:
            for path in run.folder.glob(RANK_ERROR.format("*")):
                path.unlink(missing_ok=True)
        run.put_status("queued", process=me, message=state.message if mine else "")


def refuse_if_alive(run: Run, what: str, *, force: bool = False) -> None:
    """Raise RunBusy if a process has the run, or may have it where this host cannot look (unless `force`)."""
    state = read_state(run.folder)
    if state.elsewhere and not force:
        raise RunBusy(
            f"Cannot {what} {run.name}.",
            f"It is {state.status} on {state.host}, where this host cannot look.",
            f"Stop it there; if {state.host} is gone for good, use --force.",
        )
    if state.alive and state.process is not None and state.process.here:
        raise RunBusy(
            f"Cannot {what} {run.name}.",
            f"Its process {state.pid} lives, and is {state.status}.",
            "Stop it first.",
        )


def supervise(run: Run, work: Work, *, uses_device: bool = True) -> int:
    """Take the run through its life in this process; returns the exit status: 0, or 1 if it failed.

    `work` writes the status running itself, with its steps, and looks at `run.stop_requested()` after each. SIGTERM and
    SIGINT ask for a stop; a second one ends at once. Under torchrun every rank calls this: rank 0 alone writes, and the
    others begin when it does.

    uses_device: False for a process that only starts runs, and must not wait where they do.

    Raises:
        RunBusy: another process has the run.
    """
    ranks = Ranks()
    with log_to(run, write=ranks.first), _signals_stop(run):
        if not ranks.first:
            return _follow(run, work, ranks)
        claim(run)
        told = False
        try:
            slot = slots.wait_for_slot(run) if uses_device else slots.NO_SLOT
            if slot is None:
                run.write_status("stopped", message="Stopped before it began.")
                return 0
            try:
                run.write_status("starting")
                told = True
                ranks.tell("begin", "yes")
                result = work(run)
                if errors := rank_errors(run.folder):
                    raise RunError("Another rank failed.", "\n".join(errors), "See log.txt.")
                stopped = result == "stopped"
                run.write_status(result, message=_last_words(run, trains=uses_device) if stopped else "")
                return 0
            finally:
                slot.release()
        except BaseException as error:  # whatever ends a run is told
            return _report(run, error)
        finally:
            if not told:
                ranks.tell("begin", "")


def fail(run: Run, error: BaseException) -> None:
    """Write why a run failed into its status, as far as its folder and its disk allow."""
    run.write_status("failed", message=explain(error, run))


def explain(error: BaseException, run: Run) -> str:
    """An error for a person who did not see it happen: what, why and what to do, or the last lines of a foreign error."""
    if disk_is_full(error):
        last = run.checkpoints()
        kept = f"Checkpoint {last[-1]} is whole" if last else "There is no checkpoint yet"
        return f"The disk is full.\nNothing more can be written to {run.folder}.\n{kept}; free some space, then resume."
    if isinstance(error, ExplainedError):
        return f"{error.what}\n{error.why}\n{error.do}"
    lines = "".join(traceback.format_exception_only(error)).strip()
    return lines[-MESSAGE_CHARACTERS:]


def _follow(run: Run, work: Work, ranks: Ranks) -> int:
    """A rank that is not 0: begin when rank 0 does, end with it, write nothing but one's own error."""
    if not ranks.hear("begin"):
        return 0
    try:
        work(run)
    except _Ended as error:
        return 128 + error.number
    except Exception as error:
        traceback.print_exc()
        path = run.folder / RANK_ERROR.format(ranks.rank)
        path.write_text(f"Rank {ranks.rank}: {explain(error, run)}", encoding="utf-8")
        return 1
    return 0


def _report(run: Run, error: BaseException) -> int:
    """Write an end by an exception into the folder; the exit status that goes with it."""
    if isinstance(error, RunGone):
        print(f"kvviz: {error}", file=sys.stderr)
        return 1
    try:
        if isinstance(error, _Ended):
            message = f"Ended at once by a second {error}; steps after its last checkpoint are lost."
            run.write_status("stopped", message=message)
            return 128 + error.number
        errors = rank_errors(run.folder)
        if errors and not isinstance(error, RunError):
            # A peer that failed is why this rank lost its connection.
            error.add_note("\n".join(errors))
        fail(run, error)
    except (OSError, RunGone) as unwritten:
        # Nothing fits on the disk: the exit and the lock the kernel frees tell readers that the run is lost.
        print(
            f"kvviz: {explain(error, run)}\nkvviz: {run.folder} cannot be written: {unwritten}",
            file=sys.stderr,
        )
        return 1
    _print(error)
    return 1


def _print(error: BaseException) -> None:
    try:
        traceback.print_exception(error)
        sys.stderr.flush()
    except OSError:
        # The log is on the disk that is full; the status has the reason.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _last_words(run: Run, *, trains: bool) -> str:
    """What a process that was asked to stop says last."""
    if not trains:
        return "Stopped as asked. Resume goes on with the runs that are not finished."
    last = run.checkpoints()
    kept = f"Its last checkpoint is of step {last[-1]}." if last else "It has no checkpoint."
    return f"Stopped as asked. {kept}"


@contextmanager
def _signals_stop(run: Run) -> Iterator[None]:
    """The first signal asks for a stop, a later one raises _Ended in the main thread, one more ends the process."""
    first = 0.0
    asked = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first, asked
        if asked and time.monotonic() - first < SAME_SIGNAL_SECONDS:
            return
        asked += 1
        first = time.monotonic()
        if asked == 1:
            try:
                run.request_stop()
            except (OSError, RunGone):
                raise _Ended(number) from None  # There is no folder to put the request into.
        elif asked == 2:
            raise _Ended(number)
        else:
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    caught = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
