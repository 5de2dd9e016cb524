"""profile_alignment: one alignment taken apart, stage by stage, as the v4.0 report's tool of that name does.

Shapes after every stage, time and peak memory of each, parameter count, NaN/Inf check, K and V error and cosine,
attention KL and entropy, each beside the identity baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvviz.align.aligner import PARTS, Part
from kvviz.align.calibrate import states
from kvviz.capture import attention_agreement, capture
from kvviz.config import AlignmentConfig
from kvviz.inspection import Inspection, Prompt, inspect
from kvviz.memory import peak_memory
from kvviz.pair import LoadedModel


@dataclass(frozen=True)
class Stage:
    """One step of the alignment: the shape it left behind, its time in seconds and peak memory in bytes."""

    name: str
    shape: list[int]
    seconds: float
    peak_bytes: int


def profile_alignment(
    teacher: LoadedModel,
    student: LoadedModel,
    prompt: Prompt | str,
    config: AlignmentConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Align one text and report on it in JSON types; `kvviz profile --json` prints exactly this.

    Raises:
        PromptError, ConfigError, CalibrationError: as `kvviz.inspect`.
    """
    inspection = inspect(teacher, student, prompt, config, progress=progress)
    prompt = inspection.reading.prompt
    student_text = prompt.text if prompt.student_text is None else prompt.student_text
    stages = _stages(teacher, student, inspection, student_text)
    aligned = inspection.alignment.aligned
    return {
        "teacher": asdict(teacher.geometry),
        "student": asdict(student.geometry),
        "config": inspection.config.model_dump(mode="json"),
        "key_space": inspection.key_space,
        "tokens": {
            "teacher": inspection.reading.trace_t.lengths[0],
            "student": inspection.reading.trace_s.lengths[0],
        },
        "agreement": max(
            attention_agreement(teacher, prompt.text), attention_agreement(student, student_text)
        ),
        "stages": [asdict(stage) for stage in stages],
        "parameters": inspection.aligner.parameter_count(),
        "finite": all(bool(torch.isfinite(x).all()) for x in aligned.values()),
        **_figures(inspection.errors, inspection.attention),
        "identity": _figures(inspection.baseline_errors, inspection.baseline_attention),
        "held_out": None
        if inspection.fit_report is None
        else {part: score.total_r2 for part, score in inspection.fit_report.scores.items()},
    }


def _figures(errors: dict, attention: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for part in PARTS:
        for name in ("cosine", "relative_error", "r2"):
            figures[f"{part}_{name}"] = errors[part].total[name]
    figures["attention_kl"] = attention.mean
    figures["attention_entropy"] = {
        "teacher": float(attention.entropy_teacher.mean()),
        "student": float(attention.entropy_student.mean()),
    }
    figures["attention_outside"] = attention.outside
    return figures


@torch.no_grad()
def _stages(
    teacher: LoadedModel, student: LoadedModel, inspection: Inspection, student_text: str
) -> list[Stage]:
    stages: list[Stage] = []

    def measure(name: str, device: torch.device, work: Callable[[], Tensor]) -> Tensor:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        # A second time for the memory: watching every operation would slow down the first.
        with peak_memory(device) as peak:
            work()
        stages.append(Stage(name, list(result.shape), seconds, peak.bytes))
        return result

    measure("capture teacher", teacher.device, lambda: capture(teacher, [inspection.reading.prompt.text]).k)
    measure("capture student", student.device, lambda: capture(student, [student_text]).k)
    aligner, warp, cpu = inspection.alignment.aligner, inspection.warp, torch.device("cpu")
    for part in PARTS:
        x = measure(f"teacher {part}", cpu, partial(_teacher_states, inspection, part))
        x = measure(f"layers {part}", cpu, partial(aligner.map_layers, x))
        x = measure(f"time {part}", cpu, partial(warp.apply, x))
        measure(f"heads and dims {part}", cpu, partial(aligner.projectors[part], x))
    return stages


def _teacher_states(inspection: Inspection, part: Part) -> Tensor:
    return states(inspection.reading.trace_t, part, inspection.key_space).float()


def as_table(report: dict[str, Any]) -> str:
    """The report as text for a terminal."""
    lines = []
    for role in ("teacher", "student"):
        g = report[role]
        rope = "no RoPE" if g["rope_theta"] is None else f"RoPE theta {g['rope_theta']:,.0f}"
        lines.append(
            f"{role:<8} {g['name']}: {g['layers']} layers, {g['heads']} query heads, {g['kv_heads']} KV heads, "
            f"head dim {g['head_dim']}, {rope}, {report['tokens'][role]} tokens"
        )
    mode = report["config"]["kv_projection_mode"]
    lines += [
        f"mode     {mode}, {report['parameters']:,} parameters, key space {report['key_space']}",
        f"checks   {'all values finite' if report['finite'] else 'NaN or Inf in the aligned cache'}; captured attention "
        f"matches transformers within {report['agreement']:.1e}",
        "",
        f"{'stage':<20} {'shape':<28} {'time':>10} {'peak memory':>14}",
    ]
    for stage in report["stages"]:
        lines.append(
            f"{stage['name']:<20} {' × '.join(map(str, stage['shape'])):<28} {stage['seconds'] * 1e3:>7.1f} ms "
            f"{stage['peak_bytes'] / 2**20:>10.2f} MiB"
        )
    lines += ["", f"{'on this text':<28} {mode:>12} {'identity':>12}"]
    names = [f"{part}_{name}" for part in ("k", "v", "q") for name in ("relative_error", "cosine", "r2")]
    for name in [*names, "attention_kl"]:
        unit = ", nats" if name == "attention_kl" else ""
        lines.append(
            f"{name.replace('_', ' ') + unit:<28} {report[name]:>12.4f} {report['identity'][name]:>12.4f}"
        )
    for role in ("teacher", "student"):
        label = f"attention entropy {role}, nats"
        entropy, base = (r["attention_entropy"][role] for r in (report, report["identity"]))
        lines.append(
            f"{label:<28} {entropy:>11.4f} {base:>12.4f}"
            if len(label) > 28
            else f"{label:<28} {entropy:>12.4f} {base:>12.4f}"
        )
    if report["held_out"]:
        scores = ", ".join(f"{part.upper()} {r2:.3f}" for part, r2 in report["held_out"].items())
        lines += ["", f"held-out R² of this map on calibration texts: {scores}"]
    return "\n".join(lines)
