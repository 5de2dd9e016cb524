"""What can be wrong with a run that is not training's fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvviz.errors import ExplainedError


class RunError(ExplainedError):
    """Something that cannot be done with a run."""


class RunGone(RunError):
    """The run's folder is not there (any more)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"The run {folder.name} is gone.",
            f"There is no folder {folder}: it was deleted or moved.",
            "Go back to the list of runs; the other runs go on.",
        )


class RunBusy(RunError):
    """The run's process lives, or may live on another host."""


@contextmanager
def gone_if_missing(folder: Path) -> Iterator[None]:
    """A file that is missing because its whole folder is missing raises RunGone; any other error passes."""
    try:
        yield
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise RunGone(folder) from error
        raise
