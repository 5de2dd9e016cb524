"""Greedy writing, streamed: the teacher's own reasoning for the aligner to run on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from kvviz.capture import encode
from kvviz.errors import PromptError
from kvviz.pair import LoadedModel


class _StopWhenSet(StoppingCriteria):
    """Ends a generation at the next token once one of some events is set."""

    def __init__(self, *events: threading.Event) -> None:
        self.events = events

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        stop = any(event.is_set() for event in self.events)
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device)


def stream_greedy(
    loaded: LoadedModel, prompt: str, max_new_tokens: int, stop: threading.Event | None = None
) -> Iterator[str]:
    """Continue a prompt with the likeliest tokens; yields pieces of text as they come, without the prompt.

    Ends at the model's end-of-text token, after `max_new_tokens`, at the end of its context, when `stop` is
    set, or when the caller drops the iterator. An error while generating is raised here.

    Raises:
        PromptError: as `kvviz.capture.encode`, or the prompt leaves no room in the context.
    """
    ids = encode(loaded, [prompt]).input_ids
    # Some tokenizers close a text with an end-of-text token; a model asked to go on must not read one.
    if ids.shape[1] > 1 and ids[0, -1] == loaded.tokenizer.eos_token_id:
        ids = ids[:, :-1]
    room = min(max_new_tokens, loaded.context - ids.shape[1])
    if room < 1:
        raise PromptError(
            "There is no room to write.",
            f"The prompt has {ids.shape[1]:,} tokens and the context of {loaded.name} is {loaded.context:,}.",
            "Shorten the prompt.",
        )
    return _stream(loaded, ids.to(loaded.device), room, stop or threading.Event())


def _stream(loaded: LoadedModel, ids: torch.Tensor, room: int, stop: threading.Event) -> Iterator[str]:
    """The running part of `stream_greedy`, apart from it so that errors in the prompt are raised at the call."""
    tokenizer = loaded.tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    abandoned = threading.Event()
    errors: list[BaseException] = []
    generate: Any = loaded.model.generate
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def write() -> None:
        try:
            with loaded.lock, torch.inference_mode():
                generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=room,
                    do_sample=False,
                    num_beams=1,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=padding,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_StopWhenSet(stop, abandoned)]),
                )
        except BaseException as error:  # handed to the thread that reads, which raises it
            errors.append(error)
            streamer.end()

    writer = threading.Thread(target=write, name="kvviz-generate", daemon=True)
    writer.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        abandoned.set()
        writer.join()
    if errors:
        raise errors[0]
