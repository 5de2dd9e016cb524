"""How much memory a piece of work needs at its peak, over what was there before."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Peak:
    """Filled in when the `with` block of `peak_memory` ends."""

    bytes: int = 0


@dataclass
class _Live:
    """Bytes of tensor storages made since the start and still alive, and their most so far."""

    bytes: int = 0
    peak: int = 0
    seen: set[int] = field(default_factory=set)

    def hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.seen:
            return
        self.seen.add(storage._cdata)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size


class _Watch(TorchDispatchMode):
    """Sees the result of every operation; an operation's inner scratch space is not counted."""

    def __init__(self, live: _Live) -> None:
        super().__init__()
        self.live = live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in before:
                self.live.hold(leaf.untyped_storage())
        return result


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Peak bytes allocated for tensors inside the block: the allocator's own count on CUDA, results of operations on a CPU.

    >>> with peak_memory() as peak:
    ...     y = x @ x.T
    >>> peak.bytes
    """
    peak = Peak()
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - start
        return
    live = _Live()
    with _Watch(live):
        yield peak
    peak.bytes = live.peak
