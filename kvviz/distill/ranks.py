"""The processes of one run: which of them this is, and what rank 0 has to tell the others before they train together.

torchrun, and a Slurm job, start all ranks with the same command. Rank 0 alone chooses the folder, waits for the device
and writes; the others hear from it through the store that torch.distributed itself meets at.
"""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import Any

POLL_SECONDS = 0.3


class Ranks:
    """This process among the run's processes, as the environment (RANK, WORLD_SIZE) has it; alone without one."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE") or 1)
        self.rank = int(os.environ.get("RANK") or 0) if self.world > 1 else 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def tell(self, name: str, value: str) -> None:
        """From rank 0 to all others, once a name."""
        if self.world > 1:
            self._store.set(name, value)

    def hear(self, name: str) -> str:
        """Wait for what rank 0 tells, however long it takes."""
        while not self._store.check([name]):
            time.sleep(POLL_SECONDS)
        return self._store.get(name).decode()

    @cached_property
    def _store(self) -> Any:
        from torch import distributed

        store, _, _ = next(distributed.rendezvous("env://"))
        # torchrun starts all ranks again after a failure, if it is told to: what was said before does not count.
        return distributed.PrefixStore(f"kvviz/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
