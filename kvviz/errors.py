"""Errors that a person reads: what happened, why, and what to do next."""

from __future__ import annotations


class ExplainedError(ValueError):
    """An error in three short sentences; pages show them one under the other.

    Attributes:
        what: what happened. why: the reason. do: what to do next.
    """

    def __init__(self, what: str, why: str, do: str) -> None:
        super().__init__(f"{what} {why} {do}")
        self.what = what
        self.why = why
        self.do = do


class ModelError(ExplainedError):
    """A model that cannot be used."""


class PromptError(ExplainedError):
    """A text that a model cannot read."""


def sentence(error: BaseException | str, limit: int = 300) -> str:
    """An error's first line as a sentence, for `why`."""
    text = shorten(error, limit) if isinstance(error, BaseException) else error
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def shorten(error: BaseException, limit: int = 300) -> str:
    """The first line of a library's error, cut to a length a page has room for."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= limit else line[: limit - 1] + "…"
