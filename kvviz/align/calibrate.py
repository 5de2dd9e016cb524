"""Calibration: both models read the same texts once, and what a fit needs is summed up and kept on disk.

Both sides read the same text, so positions are paired by shared characters (`text_warp`). Where the moments
of all pairs of teacher layers fit into memory they are kept (`CrossMoments`), and then any layer map can be
fitted without another pass; for large pairs the layer map is applied on the way in.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import platformdirs
import torch
from einops import einsum, rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvviz.align.aligner import PARTS, Part
from kvviz.align.moments import CrossMoments, Moments, SplitMoments
from kvviz.align.text import text_warp
from kvviz.capture import capture
from kvviz.geometry import Geometry
from kvviz.pair import LoadedModel
from kvviz.trace import Space, Trace

KEPT_BYTES = 2 * 2**30  # The newest calibrations on disk, up to this many bytes.
FORMAT = 2  # Part of every key: raise it when the meaning of the sums changes.
CROSS_LIMIT = 256 * 2**20
MEMORY_LIMIT = 8 * 2**30


class CalibrationError(ValueError):
    """Texts or a pair that cannot be calibrated; the message says why and what would work."""


class CalibrationCancelled(Exception):
    """The caller's stop event was set."""


@dataclass(frozen=True)
class CalibrationTexts:
    """Disjoint texts: to fit on, to choose the regulariser on, to report on."""

    fit: tuple[str, ...]
    select: tuple[str, ...]
    report: tuple[str, ...]

    @classmethod
    def bundled(cls, fit: int = 160, select: int = 40, report: int = 60) -> CalibrationTexts:
        """Bundled problems; what is reported on comes from their held-out split."""
        from kvviz.bundled.problems import problems

        seen = [problem.text for problem in problems(fit + select, "train", seed=101)]
        return cls(
            tuple(seen[:fit]),
            tuple(seen[fit:]),
            tuple(problem.text for problem in problems(report, "heldout", seed=102)),
        )

    @classmethod
    def split(cls, texts: Sequence[str]) -> CalibrationTexts:
        """Somebody's own texts, dealt in turn: seven to fit on, one to select on, two to report on.

        Raises:
            CalibrationError: for fewer than ten different texts that are not blank.
        """
        # Once each: a text that is fitted to must not be reported on.
        kept = [text for text in dict.fromkeys(texts) if text.strip()]
        if len(kept) < 10:
            raise CalibrationError(
                f"{len(kept)} different texts are too few to fit, select and report on: give at least 10, one a paragraph"
            )
        dealt: tuple[list[str], list[str], list[str]] = ([], [], [])
        for index, text in enumerate(kept):
            dealt[(0, 0, 0, 0, 1, 0, 2, 0, 0, 2)[index % 10]].append(text)
        return cls(*(tuple(texts) for texts in dealt))


@dataclass(frozen=True, eq=False)
class Calibration:
    """The moments of a pair for one key space, by part and by split.

    layer_matrix: `[L_s, L_t]` where it was applied on the way in; None where every pair of teacher layers is held.
    """

    splits: dict[Part, tuple[CrossMoments | Moments, ...]]
    layer_matrix: Tensor | None = None

    def under(self, layer_matrix: Tensor) -> dict[Part, SplitMoments]:
        """Moments for a layer map.

        Raises:
            CalibrationError: another map was applied when the texts were read.
        """
        baked = self.layer_matrix
        if baked is not None and not torch.allclose(baked.to(layer_matrix), layer_matrix, atol=1e-6):
            raise CalibrationError("these sums were made for another layer map: calibrate this pair again")
        return {
            part: SplitMoments(*(m.under(layer_matrix) if isinstance(m, CrossMoments) else m for m in splits))
            for part, splits in self.splits.items()
        }


def fits_cross(teacher: Geometry) -> bool:
    """Whether the moments of all pairs of this teacher's layers stay within `CROSS_LIMIT` bytes a part."""
    widest = max(teacher.heads_of(part) * teacher.dim_of(part) for part in PARTS)
    return (teacher.layers * widest) ** 2 * 8 <= CROSS_LIMIT


def memory_needed(teacher: Geometry, student: Geometry) -> int:
    """Bytes of the XᵀX and XᵀY of a pair in float64, all parts and splits."""
    numbers = 0
    for part in PARTS:
        n, m = (side.heads_of(part) * side.dim_of(part) for side in (teacher, student))
        if fits_cross(teacher):
            numbers += teacher.layers * n * (teacher.layers * n + student.layers * m)
        else:
            numbers += student.layers * n * (n + m)
    return 3 * 8 * numbers


def collect(
    teacher: LoadedModel,
    student: LoadedModel,
    texts: CalibrationTexts,
    key_space: Space,
    layer_matrix: Tensor,
    *,
    batch_size: int = 10,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> Calibration:
    """One streaming pass over the texts.

    Args:
        key_space: `pre_rope` or `post_rope`, the space keys and queries are taken in.
        layer_matrix: `[L_s, L_t]`, used where cross-layer moments would not fit.
        progress: called with texts done and texts in all.
        stop: set it to give up between two batches.

    Raises:
        CalibrationError: where even the mapped moments exceed `MEMORY_LIMIT`, or a split has no text.
        CalibrationCancelled: when `stop` was set.
    """
    cross = fits_cross(teacher.geometry)
    needed = memory_needed(teacher.geometry, student.geometry)
    if needed > MEMORY_LIMIT:
        raise CalibrationError(
            f"the moments of this pair take {needed / 2**30:.1f} GiB, over the limit of {MEMORY_LIMIT / 2**30:.0f} GiB: "
            "choose init uniform or random, or a teacher with fewer or narrower layers"
        )
    if not (texts.fit and texts.select and texts.report):
        raise CalibrationError("calibration needs at least one text to fit, to select and to report on")
    total = len(texts.fit) + len(texts.select) + len(texts.report)
    done = 0
    sums: dict[Part, list[CrossMoments | Moments]] = {part: [] for part in PARTS}
    for split in (texts.fit, texts.select, texts.report):
        running: dict[Part, CrossMoments | Moments] = {}
        for start in range(0, len(split), batch_size):
            if stop is not None and stop.is_set():
                raise CalibrationCancelled
            batch = list(split[start : start + batch_size])
            for part, moments in _batch_moments(
                teacher, student, batch, key_space, None if cross else layer_matrix
            ):
                running[part] = running[part] + moments if part in running else moments  # type: ignore[operator]
            done += len(batch)
            if progress is not None:
                progress(done, total)
        for part in PARTS:
            sums[part].append(running[part].cpu())
    return Calibration({part: tuple(sums[part]) for part in PARTS}, None if cross else layer_matrix)


def states(trace: Trace, part: Part, key_space: Space) -> Tensor:
    """A trace's q, k or v `[batch, layer, head, position, dim]` in a key space (values know no rotation)."""
    if part == "v":
        return trace.v
    return trace.queries(key_space) if part == "q" else trace.keys(key_space)


def _batch_moments(
    teacher: LoadedModel,
    student: LoadedModel,
    batch: list[str],
    key_space: Space,
    layer_matrix: Tensor | None,
) -> Iterator[tuple[Part, CrossMoments | Moments]]:
    trace_t, trace_s = capture(teacher, batch), capture(student, batch)
    warp = text_warp(trace_t.offsets, trace_t.attention_mask, trace_s.offsets, trace_s.attention_mask)
    valid = trace_s.attention_mask
    for part in PARTS:
        # Warped and summed where the teacher ran, but for Apple's GPUs: they have no float64.
        x = states(trace_t, part, key_space).float()
        x = warp.apply(x.cpu() if x.device.type == "mps" else x)
        if layer_matrix is not None:
            x = einsum(
                x,
                layer_matrix.to(x),
                "batch teacher_layer head position dim, student_layer teacher_layer "
                "-> batch student_layer head position dim",
            )
        y = states(trace_s, part, key_space).float().to(x.device)
        rows = [
            rearrange(z, "batch layer head position dim -> batch position layer (head dim)")[
                valid.to(z.device)
            ]
            for z in (x, y)
        ]
        paired = [rearrange(z, "position layer channel -> layer position channel") for z in rows]
        yield part, (CrossMoments if layer_matrix is None else Moments).of(*paired)


def cache_folder() -> Path:
    """Where calibrations are kept: `KVVIZ_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("KVVIZ_CACHE") or platformdirs.user_cache_dir("kvviz")) / "calibration"


def calibration_key(
    teacher: LoadedModel,
    student: LoadedModel,
    texts: CalibrationTexts,
    key_space: Space,
    layer_matrix: Tensor | None,
) -> str:
    """A name for everything the sums depend on: weights, texts, key space and, where baked in, the layer map.

    layer_matrix: None will do where `fits_cross` holds. Raises ValueError where it is missed.
    """
    crosses = fits_cross(teacher.geometry)
    if layer_matrix is None and not crosses:
        raise ValueError(
            "the sums of a teacher this large depend on the layer map: it belongs into their name"
        )
    parts = {
        "format": FORMAT,
        "teacher": [teacher.fingerprint, str(teacher.dtype)],
        "student": [student.fingerprint, str(student.dtype)],
        "texts": [texts.fit, texts.select, texts.report],
        "key_space": key_space,
        "layer_matrix": None if crosses or layer_matrix is None else layer_matrix.tolist(),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def load(key: str) -> Calibration | None:
    """A calibration kept under this key, or None. A file that cannot be read is no calibration: it is removed."""
    path = cache_folder() / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            layer_matrix = file.get_tensor("layer_matrix") if "layer_matrix" in set(file.keys()) else None
            kind: type[CrossMoments] | type[Moments] = CrossMoments if layer_matrix is None else Moments
            splits: dict[Part, tuple[CrossMoments | Moments, ...]] = {
                part: tuple(
                    kind(*(file.get_tensor(f"{part}.{split}.{field.name}") for field in fields(kind)))
                    for split in range(3)
                )
                for part in PARTS
            }
    except (SafetensorError, KeyError, OSError):
        # A write that was cut short by a full disk, say: the texts can be read again.
        path.unlink(missing_ok=True)
        return None
    return Calibration(splits, layer_matrix)


def save(key: str, calibration: Calibration) -> None:
    """Keep a calibration; other processes see the whole file or none."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}.{split}.{field.name}": getattr(moments, field.name).cpu().contiguous()
        for part, splits in calibration.splits.items()
        for split, moments in enumerate(splits)
        for field in fields(moments)
    }
    if calibration.layer_matrix is not None:
        tensors["layer_matrix"] = calibration.layer_matrix.cpu().contiguous()
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as partial:
        temporary = Path(partial.name)
    try:
        save_file(tensors, temporary)
        temporary.replace(folder / f"{key}.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
    _forget_oldest(folder)


def _forget_oldest(folder: Path) -> None:
    """Keep the newest calibrations, up to `KEPT_BYTES` and at least one."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for index, path in enumerate(files):
        total += path.stat().st_size
        if index > 0 and total > KEPT_BYTES:
            path.unlink(missing_ok=True)
