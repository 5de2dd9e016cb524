"""A batch: the same examples as both models read them, padded, with what each position is to predict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvviz.align.aligner import time_warper
from kvviz.align.text import text_warp
from kvviz.align.warp import Warp
from kvviz.capture import Encoding, encode
from kvviz.config import AlignmentConfig
from kvviz.distill.data import Example
from kvviz.pair import LoadedModel
from kvviz.segments import match_segments, split_text, token_segments

IGNORED = -100  # label of a position without loss


class Collator:
    """Examples → one dict of tensors, all `[batch, position, …]`; those of the teacher only where it takes part.

    input_ids, attention_mask, position_ids, labels: of the student; labels are *next* tokens, the end of the text
    included, −100 where nothing is to be predicted (the prompt, padding).
    teacher_input_ids, teacher_attention_mask, teacher_position_ids: of the teacher.
    warp_index, warp_weight: the time warp's taps `[batch, T_s, tap]`.
    """

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel | None,
        config: AlignmentConfig,
        max_length: int,
        same_text: bool,
    ) -> None:
        self.student, self.teacher, self.config = student, teacher, config
        self.max_length, self.same_text = max_length, same_text

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        parts_s = [example.side(student=True) for example in examples]
        own = encode(self.student, [prompt + rest for prompt, rest in parts_s], max_length=self.max_length)
        batch = {
            "input_ids": own.input_ids,
            "attention_mask": own.attention_mask.long(),
            "position_ids": own.position_ids,
            "labels": next_tokens(own, parts_s, self.student.tokenizer.eos_token_id),
        }
        if self.teacher is None:
            return batch
        parts_t = [example.side(student=False) for example in examples]
        theirs = encode(self.teacher, [prompt + rest for prompt, rest in parts_t], max_length=self.max_length)
        warp = self._warp(theirs, own)
        return batch | {
            "teacher_input_ids": theirs.input_ids,
            "teacher_attention_mask": theirs.attention_mask.long(),
            "teacher_position_ids": theirs.position_ids,
            "warp_index": warp.index,
            "warp_weight": warp.weight,
        }

    def _warp(self, theirs: Encoding, own: Encoding) -> Warp:
        """As the inspector's: by shared characters for the same text, segment by segment otherwise."""
        method = self.config.time_method
        if method == "text" or (method == "auto" and self.same_text):
            return text_warp(theirs.offsets, theirs.attention_mask, own.offsets, own.attention_mask)
        ids_t, ids_s = torch.full_like(theirs.input_ids, -1), torch.full_like(own.input_ids, -1)
        for row, (text_t, text_s) in enumerate(zip(theirs.texts, own.texts, strict=True)):
            segments_t, segments_s = split_text(text_t), split_text(text_s)
            shared = match_segments(segments_t, segments_s)
            for ids, side, segments, names in (
                (ids_t, theirs, segments_t, shared[0]),
                (ids_s, own, segments_s, shared[1]),
            ):
                found = token_segments(segments, side.offsets[row], side.attention_mask[row])
                ids[row] = torch.where(found >= 0, torch.tensor(names)[found.clamp_min(0)], -1)
        return time_warper(self.config).warp(ids_t, ids_s.shape[1], ids_s)


def next_tokens(encoding: Encoding, parts: Sequence[tuple[str, str]], end: int | None) -> Tensor:
    """What each position is to predict, int64 `[batch, position]`: the next token where it belongs to the completion.

    A token belongs to the completion where it holds any character of it. After a whole completion comes the end of the text
    (where the tokenizer has a token for it); a text that was cut ends without.
    """
    ids, mask = encoding.input_ids, encoding.attention_mask
    labels = torch.full_like(ids, IGNORED)
    for row, (prompt, rest) in enumerate(parts):
        held = mask[row].nonzero().flatten()
        first, last = int(held[0]), int(held[-1])
        ends = encoding.offsets[row, :, 1]
        told = mask[row] & (ends > len(prompt))
        told[first] = False  # nothing comes before the first token, so nothing predicts it
        positions = told.nonzero().flatten()
        labels[row, positions - 1] = ids[row, positions]
        closed = ids[row, last] == end
        if end is not None and not closed and int(ends[last]) >= len(prompt) + len(rest.rstrip()):
            labels[row, last] = end
    return labels
