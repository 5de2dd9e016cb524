"""Where a text falls into prompt, reasoning steps and answer: found from its layout, in time linear in its length."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

Kind = Literal["prompt", "step", "answer", "text"]
# More segments than this are not told apart in a picture: the last one takes the rest.
MAX_SEGMENTS = 32


@dataclass(frozen=True)
class Segment:
    """Characters start … end−1 of a text."""

    name: str
    start: int
    end: int
    kind: Kind


class _Mark(NamedTuple):
    """A segment begins here; it ends where the next one begins."""

    start: int
    name: str
    kind: Kind


# Every pattern is read once from left to right, without nested repeats: 10 MB of anything take time in proportion.
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_LINE = re.compile(r"^[^\S\n]*(?=\S)", re.M)
_SOMETHING = re.compile(r"\S")
_QUESTION = re.compile(r"^[^\S\n]*(?:(?i:question|problem)|Q):", re.M)
_REASONING = re.compile(r"^[^\S\n]*(?:(?i:reasoning|brief|answer|solution)|A):", re.M)
_FINAL = re.compile(r"^[^\S\n]*####", re.M)
_TURN = re.compile(
    r"<\|im_start\|>[^\S\n]{0,8}(\w{1,20})"  # ChatML
    r"|<\|start_header_id\|>(\w{1,20})<\|end_header_id\|>"  # Llama 3
    r"|<start_of_turn>[^\S\n]{0,8}(\w{1,20})"  # Gemma
    r"|<\|(system|user|assistant|tool|observation)\|>"  # Phi, Zephyr, GLM
    r"|(\[/?INST\])"  # Mistral, Llama 2
)
_INST = {"[INST]": "user", "[/INST]": "assistant"}
_REPLIES = {"assistant", "model"}
_TAGS_ONLY = re.compile(r"\s*(?:<[^<>\s]{1,40}>\s*){0,8}\Z")


def split_text(text: str) -> list[Segment]:
    """The segments a text suggests, at most 32.

    Chat roles: one prompt segment a turn, named after the role; the assistant's turn is split as below, its header belonging to what
    stands before it. `<think>`: prompt up to the tag, one step a paragraph (or line) inside, the answer from `</think>`. GSM8K layout
    (a text that begins with "Question:", or has a line "#### …"): prompt through the line "Reasoning:" / "Answer:" (or through the
    question where there is none), one step a line, the answer from "####". Anything else: one segment a paragraph, or a line.
    """
    if not text:
        return [Segment("text", 0, 0, "text")]
    return _segments(_chat(text) or _thinking(text) or _gsm8k(text) or _plain(text), text)


def _chat(text: str) -> list[_Mark]:
    turns = []
    for match in _TURN.finditer(text):
        turns.append(match)
        # A turn gives at least one segment, two turns at most one header without: enough to fill the list.
        if len(turns) > 2 * MAX_SEGMENTS:
            break
    if not turns:
        return []
    marks = []
    if not _TAGS_ONLY.match(text, 0, turns[0].start()):
        marks.append(_Mark(0, "prompt", "prompt"))
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        token = cast(str, turn[turn.lastindex or 0])
        role = _INST.get(token, token)
        if role not in _REPLIES:
            marks.append(_Mark(turn.start(), role, "prompt"))
            continue
        if not marks:
            marks.append(_Mark(0, "prompt", "prompt"))
        end = following.start() if following else len(text)
        begin = _skip_space(text, turn.end(), end)
        reply = _reply(text, begin, end)
        if len(reply) == 1 and text.find("<think>", begin, end) < 0:
            # A reply of one line has no reasoning in it.
            reply = [_Mark(begin, "answer", "answer")]
        marks += reply
    return marks


def _thinking(text: str) -> list[_Mark]:
    if "<think>" not in text:
        return []
    return [_Mark(0, "prompt", "prompt"), *_reply(text, 0, len(text))]


def _gsm8k(text: str) -> list[_Mark]:
    questions = list(_QUESTION.finditer(text))
    asked = bool(questions) and questions[0].end() > _skip_space(text, 0, len(text))
    if not asked and not _FINAL.search(text):
        return []
    # The last question is the one to answer; those before it are worked examples, part of the prompt.
    body = questions[-1].end() if questions else 0
    final = _FINAL.search(text, body)
    limit = final.start() if final else len(text)
    header = _REASONING.search(text, body, limit)
    if header:
        begin = header.end()
    else:
        parts = _starts(text, _skip_space(text, body, limit), limit, 2)
        begin = parts[1] if len(parts) > 1 else limit
    return [_Mark(0, "prompt", "prompt"), *_reply(text, _skip_space(text, begin, len(text)), len(text))]


def _reply(text: str, start: int, end: int) -> list[_Mark]:
    """Steps and answer of what a model wrote, text[start:end]."""
    opened, closed = text.find("<think>", start, end), text.find("</think>", start, end)
    if opened >= 0 or closed >= 0:
        inner = opened + len("<think>") if opened >= 0 else start
        closed = text.find("</think>", inner, end)
        stop = closed if closed >= 0 else end
        steps = _starts(text, _skip_space(text, inner, stop), stop, MAX_SEGMENTS - 2)
        answer = [stop] if stop < end else []
    else:
        final = _FINAL.search(text, start, end)
        stop = start if text.startswith("####", start, end) else final.start() if final else end
        steps = _line_starts(text, start, stop, MAX_SEGMENTS - 2)
        answer = [stop] if stop < end else []
    return [*(_Mark(at, "step", "step") for at in steps), *(_Mark(at, "answer", "answer") for at in answer)]


def _plain(text: str) -> list[_Mark]:
    first = _skip_space(text, 0, len(text))
    starts = _starts(text, first, len(text), MAX_SEGMENTS)
    if len(starts) < 2:
        return [_Mark(0, "text", "text")]
    name = "paragraph" if _BLANK_LINE.search(text, first, starts[1]) else "line"
    return [_Mark(at, name, "text") for at in starts]


def _starts(text: str, start: int, end: int, limit: int) -> list[int]:
    """Where paragraphs begin in text[start:end], or lines where there is only one paragraph; at most `limit`."""
    if start >= end:
        return []
    starts, at = [start], start
    while len(starts) < limit:
        blank = _BLANK_LINE.search(text, at, end)
        following = _SOMETHING.search(text, blank.end(), end) if blank else None
        if not following:
            break
        at = following.start()
        starts.append(text.rfind("\n", 0, at) + 1)
    return starts if len(starts) > 1 else _line_starts(text, start, end, limit)


def _line_starts(text: str, start: int, end: int, limit: int) -> list[int]:
    if start >= end:
        return []
    starts = [start]
    for line in _LINE.finditer(text, start, end):
        if len(starts) == limit:
            break
        if line.start() > start:
            starts.append(line.start())
    return starts


def _skip_space(text: str, start: int, end: int) -> int:
    found = _SOMETHING.search(text, start, end)
    return found.start() if found else end


def _segments(marks: list[_Mark], text: str) -> list[Segment]:
    marks = [marks[0]._replace(start=0), *marks[1:]]
    ends = [mark.start for mark in marks[1:]] + [len(text)]
    marks = [mark for mark, end in zip(marks, ends, strict=True) if mark.start < end]
    if len(marks) > MAX_SEGMENTS:
        last = marks[-1:] if marks[-1].kind == "answer" else []
        marks = marks[: MAX_SEGMENTS - len(last)] + last
    count: Counter[str] = Counter()
    segments = []
    for mark, end in zip(marks, [mark.start for mark in marks[1:]] + [len(text)], strict=True):
        count[mark.name] += 1
        numbered = mark.name in ("step", "paragraph", "line") or count[mark.name] > 1
        name = f"{mark.name} {count[mark.name]}" if numbered else mark.name
        segments.append(Segment(name, mark.start, end, mark.kind))
    return segments
