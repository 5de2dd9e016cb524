"""What a run kept of itself at every log: errors head by head on a few held-out examples, and its head mixers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kvviz.distill.run import Run
from kvviz.geometry import Part

PROJECTORS = "projectors."
# Where each kind of projector keeps the weights a head mixer is read from.
MIXER, FLAT = "head_mixer", "projector.weight"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One step.

    maps: by name (`k.relative_error`, …, `attention_kl`), `[layer, head]`.
    weights: by part, what its mixer is read from; empty where the projectors were not kept.
    """

    maps: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Timeline:
    """All snapshots of a run, in order. unreadable: steps whose file could not be read."""

    steps: tuple[int, ...]
    snapshots: tuple[Snapshot, ...]
    unreadable: tuple[int, ...] = ()

    def at(self, step: int) -> int:
        """The index of the snapshot at a step, or of the last before it; the first where there is none before."""
        return max(int(np.searchsorted(self.steps, step, side="right")) - 1, 0)

    def map(self, name: str, index: int) -> np.ndarray | None:
        """A map `[layer, head]` of one snapshot; None where it was not kept."""
        return self.snapshots[index].maps.get(name)

    def all_of(self, name: str) -> np.ndarray:
        """Every value a map took over the whole run, in one row: what a colour scale must span."""
        found = [one.maps[name].ravel() for one in self.snapshots if name in one.maps]
        return np.concatenate(found) if found else np.zeros(0)

    def mixer_step(self, index: int) -> int | None:
        """The step whose projectors held at a snapshot: its own, or the last kept before; None where none was kept."""
        for step, one in zip(self.steps[index::-1], self.snapshots[index::-1], strict=True):
            if one.weights:
                return step
        return None

    def mixer(self, part: Part, step: int, layer: int, heads: int, teacher_heads: int | None) -> np.ndarray:
        """The head mixer `[student head, teacher head]` of a step at a student layer.

        Signed weights where it has some; of a flat map the Frobenius norm of each block, as on the Head mixers page. heads,
        teacher_heads: how many there are of this part; needed for a flat map.

        Raises:
            ValueError: nothing of that kind was kept, or a flat map does not fall into that many heads.
        """
        weights = self.snapshots[self.steps.index(step)].weights
        if part not in weights:
            raise ValueError("no head mixer was kept: the map is not linear, or has no parameters")
        return _mixer(weights[part], heads, teacher_heads, layer)

    def mixers(self, part: Part, layer: int, heads: int, teacher_heads: int | None) -> list[np.ndarray]:
        """That mixer at every step that kept one."""
        return [
            _mixer(one.weights[part], heads, teacher_heads, layer)
            for one in self.snapshots
            if part in one.weights
        ]


def read_timeline(run: Run) -> Timeline:
    """Read what is there now; what was read before is remembered, a file at a time.

    Raises:
        RunGone: the run's folder is not there.
    """
    found: list[tuple[int, Snapshot]] = []
    unreadable = []
    for step in run.snapshots():
        path = run.snapshot_path(step)
        try:
            status = path.stat()
            found.append((step, _snapshot(path, status.st_mtime_ns, status.st_size)))
        except (OSError, SafetensorError, ValueError):
            unreadable.append(step)
    return Timeline(
        tuple(step for step, _ in found), tuple(one for _, one in found), unreadable=tuple(unreadable)
    )


@lru_cache(maxsize=8192)
def _snapshot(path: Path, changed: int, size: int) -> Snapshot:
    """A snapshot's maps and mixers; the rest of the projectors stays on disk."""
    maps, weights = {}, {}
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118  the file is no mapping
            if not name.startswith(PROJECTORS):
                maps[name] = file.get_tensor(name)
                continue
            part, _, kind = name.removeprefix(PROJECTORS).partition(".")
            if kind in (MIXER, FLAT):
                weights[part] = file.get_tensor(name)
    return Snapshot(maps, weights)


def _mixer(weights: np.ndarray, heads: int, teacher_heads: int | None, layer: int) -> np.ndarray:
    own = weights[min(layer, len(weights) - 1)] if weights.ndim == 3 else weights
    if own.shape[0] == heads and (teacher_heads is None or own.shape[1] == teacher_heads):
        return own
    if not teacher_heads or own.shape[0] % heads or own.shape[1] % teacher_heads:
        raise ValueError(f"a map {list(own.shape)} does not fall into {heads} × {teacher_heads or '?'} heads")
    blocks = own.reshape(heads, -1, teacher_heads, own.shape[1] // teacher_heads)
    return np.sqrt(np.square(blocks).sum((1, 3)))


def span_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The values of several arrays in one row."""
    return np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0)
