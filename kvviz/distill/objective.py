"""The objective: one forward of the student, one of the teacher, and the losses between them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from kvviz.align.aligner import MapProjectionAligner, Part
from kvviz.align.mixed import mixed_attention
from kvviz.align.warp import Warp
from kvviz.capture import capture_ids, trace_of
from kvviz.distill.batch import IGNORED
from kvviz.distill.config import DistillConfig
from kvviz.intercept import recording
from kvviz.losses import StructuralKVLoss
from kvviz.pair import LoadedModel
from kvviz.trace import Space, Trace

TERMS = ("ce_loss", "kd_loss", "k_loss", "v_loss", "attn_loss")


@dataclass(frozen=True, eq=False)
class Aligned:
    """The student's trace, with the teacher's q, k, v carried to it: rotated at its positions, as its cache holds them."""

    trace: Trace
    q: Tensor
    k: Tensor
    v: Tensor
    attention: Tensor | None  # the mixed target, where the run asks for it


class Objective(nn.Module):
    """Student and projectors in one module: what is trained, moved and wrapped. The teacher stays outside, frozen.

    Called with a batch of `kvviz.distill.batch.Collator`, it returns a dict of scalars: `loss_tokens` (the terms that
    are means over predicted tokens, weighted and added: CE and KD), `loss_positions` (those over positions: K, V,
    attention), how many `tokens` and `positions` they are means of, and each term unweighted, detached, NaN where it was
    left out.
    """

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel,
        aligner: MapProjectionAligner,
        config: DistillConfig,
        key_space: Space,
    ) -> None:
        super().__init__()
        self.student, self.aligner = student.model, aligner
        # Not a module of this one: it is neither trained, saved nor wrapped.
        self._sides = (student, teacher)
        self.settings, self.key_space = config, key_space
        self.config = student.model.config  # where the Trainer, and DeepSpeed behind it, look for sizes
        weights = config.loss_config
        self.structural = StructuralKVLoss(
            weights.alpha_k, weights.alpha_v, weights.alpha_attn, weights.temperature
        )
        trained = config.aligner == "trained" and weights.structural
        for part, weight in (
            ("k", weights.alpha_k + weights.alpha_attn),
            ("v", weights.alpha_v),
            # The mixed target reads the mixer of the queries, but passes it no gradient.
            ("q", weights.alpha_attn if config.attention_target == "projected" else 0.0),
        ):
            aligner.projectors[part].requires_grad_(trained and weight > 0)

    def forward(self, every: bool = False, **batch: Tensor) -> dict[str, Tensor]:
        """every: also the terms of weight 0, for an evaluation (logit KD apart)."""
        terms, _ = self.compare(batch, every=every)
        return terms

    def compare(self, batch: dict[str, Tensor], *, every: bool) -> tuple[dict[str, Tensor], Aligned | None]:
        """The losses of a batch, and what the K, V and attention terms compared; None where none of them was computed."""
        weights = self.settings.loss_config
        student, teacher = self._sides
        ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
        structural = weights.structural or every
        theirs = their_logits = None
        if weights.alpha_kd or structural:
            # Before the student, whose forward leaves much behind: what this one needs is free again by then.
            theirs, their_logits = self._read_teacher(teacher, batch, bool(weights.alpha_kd))
        with recording(self.student) as recorder:
            logits = self.student(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
        labels = batch["labels"]
        tokens = (labels != IGNORED).sum()
        nothing = logits.new_full((), torch.nan, dtype=torch.float32)
        terms = dict.fromkeys(TERMS, nothing)
        loss_tokens = logits.new_zeros((), dtype=torch.float32)
        loss_positions = loss_tokens
        if every or weights.alpha_ce:
            ce = cross_entropy(logits, labels)
            terms["ce_loss"] = ce.detach()
            loss_tokens = loss_tokens + weights.alpha_ce * ce
        if their_logits is not None:
            kd = logit_kl(logits, their_logits, labels, weights.temperature)
            terms["kd_loss"] = kd.detach()
            loss_tokens = loss_tokens + weights.alpha_kd * kd
        aligned = None
        if structural and theirs is not None:
            trace = trace_of(student, recorder, ids, mask, positions)
            aligned = self._carry(
                theirs, trace, Warp(batch["warp_index"], batch["warp_weight"], theirs.q.shape[3]), every
            )
            total, figures = self.structural(
                s_q=trace.q,
                s_k=trace.k,
                s_v=trace.v,
                t_q=aligned.q,
                t_k=aligned.k,
                t_v=aligned.v,
                attention_mask=mask,
                scaling=trace.scaling,
                t_attention=aligned.attention,
                allowed=readable(trace),
                every=every,
            )
            loss_positions = loss_positions + total
            for name in ("k_loss", "v_loss", "attn_loss"):
                terms[name] = nothing.new_tensor(figures[name])
        return terms | {
            "loss_tokens": loss_tokens,
            "loss_positions": loss_positions,
            "tokens": tokens,
            "positions": mask.sum(),
        }, aligned

    def _read_teacher(
        self, teacher: LoadedModel, batch: dict[str, Tensor], with_logits: bool
    ) -> tuple[Trace, Tensor | None]:
        names = ("teacher_input_ids", "teacher_attention_mask", "teacher_position_ids")
        ids, mask, positions = (batch[name] for name in names)
        if not with_logits:  # the head over the vocabulary would be computed for nothing
            return capture_ids(teacher, ids, mask, positions), None
        with teacher.lock, torch.no_grad(), recording(teacher.model) as recorder:
            output = teacher.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            )
        return trace_of(teacher, recorder, ids, mask, positions), output.logits

    def _carry(self, theirs: Trace, trace: Trace, warp: Warp, every: bool) -> Aligned:
        """The teacher's states in the student's geometry, in float32; gradients reach the projectors that are trained."""
        weights, device = self.settings.loss_config, trace.k.device
        trained = any(parameter.requires_grad for parameter in self.aligner.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()), full_precision(device):

            def carried(part: Part, weight: float) -> Tensor:
                own: Tensor = getattr(trace, part)
                if not (every or weight):
                    return own.detach()  # compared with by nobody
                x: Tensor = getattr(theirs, part).float().to(device)
                if part == "v":
                    return self.aligner.carry(part, x, warp)
                undone, own_rotation = theirs.rotation(self.key_space), trace.rotation(self.key_space)
                x = self.aligner.carry(part, x, warp, undone)
                return x if own_rotation is None else own_rotation.rotate(x)

            mixed = self.settings.attention_target == "mixed"
            attention = None
            if mixed and (every or weights.alpha_attn):
                layers = range(trace.geometry.layers)
                attention = torch.stack(
                    [
                        mixed_attention(theirs, self.aligner, warp, trace.allowed(layer), layer)[0]
                        for layer in layers
                    ],
                    dim=1,
                )
            return Aligned(
                trace=trace,
                q=carried("q", 0.0 if mixed else weights.alpha_attn),
                k=carried("k", weights.alpha_k + weights.alpha_attn),
                v=carried("v", weights.alpha_v),
                attention=attention,
            )


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast switched off: maps and losses stay in float32."""
    return torch.autocast(device.type, enabled=False)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log likelihood in nats of the labels that count; 0 where none does. logits `[batch, position, token]`."""
    with full_precision(logits.device):
        flat = rearrange(logits, "batch position token -> (batch position) token").float()
        total = nn.functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)


def logit_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher ‖ student) in nats of next-token probabilities softened by the temperature, × temperature².

    Both `[batch, position, token]`, over the positions whose label counts; 0 where none does. G. Hinton, O. Vinyals,
    J. Dean, "Distilling the knowledge in a neural network" (2015): the factor keeps gradients at one size whatever the
    temperature.
    """
    with full_precision(student.device):
        counts = labels != IGNORED
        log_s, log_t = (
            (logits[counts].float() / temperature).log_softmax(-1) for logits in (student, teacher)
        )
        kl = (log_t.exp() * (log_t - log_s)).sum(-1).clamp(min=0)
        return kl.sum() * temperature**2 / counts.sum().clamp(min=1)


def readable(trace: Trace) -> Tensor | None:
    """Keys each query may read beyond causality and padding, bool `[batch or 1, layer or 1, T, T]`; None where that says all."""
    masks = trace.masks
    if all(mask is None for mask in masks):
        return None
    if all(mask is masks[0] for mask in masks):  # layers of one kind share one mask
        return masks[0]
    return torch.stack([trace.allowed(layer) for layer in range(len(masks))], dim=1)
