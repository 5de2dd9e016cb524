"""Which process is meant: a pid alone is not enough, the system gives it to another one later."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Self

import psutil

# A start time is counted in clock ticks since a boot time that the kernel itself reports a second apart at times.
SAME_START = 2.0


@dataclass(frozen=True)
class ProcessMark:
    """A process of some host, told apart from later ones with its pid by its start time (seconds since 1970)."""

    pid: int
    started: float
    host: str

    @classmethod
    def of(cls, pid: int | None = None) -> Self:
        """Of a process of this host, this one if left out.

        Raises:
            psutil.NoSuchProcess: there is none.
        """
        process = psutil.Process(pid)
        return cls(process.pid, process.create_time(), socket.gethostname())

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == socket.gethostname()

    def find(self) -> psutil.Process | None:
        """The process, if it is on this host and lives. One that ended and was not waited for (a zombie) is dead."""
        if not self.here:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < SAME_START
            return process if same and process.status() not in _DEAD else None
        except psutil.NoSuchProcess:
            return None


_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
