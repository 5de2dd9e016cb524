"""log.txt: what a run's process says, wherever else it says it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from kvviz.distill.run import Run


@contextmanager
def log_to(run: Run, *, write: bool = True) -> Iterator[None]:
    """Send kvviz's own log to standard error and, with `write`, copy both standard streams to log.txt.

    A run that a page launched has log.txt as its standard streams already.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("kvviz")
    level = logger.level
    before = sys.stdout, sys.stderr
    with run.log_path.open("ab", buffering=0) as file:
        if write and not _same(sys.stderr, file):
            sys.stdout, sys.stderr = _Tee(sys.stdout, file), _Tee(sys.stderr, file)
        handler.setStream(sys.stderr)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            sys.stdout, sys.stderr = before


class _Tee:
    """A standard stream, with a copy of each write. A progress bar that finds out about the terminal finds the terminal."""

    def __init__(self, stream: IO[str], copy: IO[bytes]) -> None:
        self._stream = stream
        self._copy = copy

    def write(self, text: str) -> int:
        if not self._copy.closed:  # Whoever kept this stream may outlive the run.
            try:
                self._copy.write(text.encode("utf-8", errors="replace"))
            except OSError as error:
                # The copy must not be what ends a run: metrics and checkpoints find the same disk full, and say so.
                self._copy.close()
                self._stream.write(f"kvviz: log.txt ends here: {error}\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _same(stream: IO[str], file: IO[bytes]) -> bool:
    """Whether both write to one file."""
    try:
        return os.path.sameopenfile(stream.fileno(), file.fileno())
    except (OSError, ValueError, AttributeError):
        return False  # A stream that is no file, as in a notebook or a test.
