"""What a student learns from: examples with a prompt and a completion, bundled, from a file, or from `datasets`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvviz.distill.config import DistillConfig
from kvviz.errors import ExplainedError, sentence

LINE_LIMIT = 10_000_000  # characters of one line of a file
TRAIN_SEED, EVAL_SEED, CALIBRATION_SEED = 500, 11, 501  # of the bundled problems drawn for each purpose
BUNDLED_SIZE = 1_000_000
LEAST = 10  # examples, below which nothing can be held out
HELD_OUT = 10  # one in so many of a user's examples is held out, chosen by its prompt
_ANSWER = re.compile(r"####\s*([^\n]+)")


class DataError(ExplainedError):
    """Examples that cannot be learned from."""


@dataclass(frozen=True)
class Example:
    """One text in two parts: what a model is given, and what it is to write.

    student: the student's own, shorter completion of `student_prompt`; None where both read the same.
    """

    prompt: str
    completion: str
    student_prompt: str | None = None
    student_completion: str | None = None

    @property
    def text(self) -> str:
        return self.prompt + self.completion

    def side(self, student: bool) -> tuple[str, str]:
        """Prompt and completion of the teacher, or of the student."""
        if student and self.student_completion is not None:
            prompt = self.prompt if self.student_prompt is None else self.student_prompt
            return prompt, self.student_completion
        return self.prompt, self.completion

    @property
    def answer(self) -> str | None:
        """What follows "####" in the completion, the layout of GSM8K; the whole completion where there is none."""
        return final_answer(self.completion)


def final_answer(text: str) -> str | None:
    """What a text comes to: what follows its first "####" (commas and spaces apart), else all of it; None if empty."""
    found = _ANSWER.search(text)
    answer = re.sub(r"[\s,$]", "", found[1]).removesuffix(".") if found else text.strip()
    return answer or None


@dataclass(frozen=True)
class Data:
    """Disjoint examples: to train on, to evaluate on, to fit the projectors on.

    train: `train(i)` is example i of `train_size`, which come in the order of the run's seed, again when all were seen.
    """

    train: Callable[[int], Example]
    train_size: int
    evaluation: tuple[Example, ...]
    calibration: tuple[Example, ...]
    source: str


def load_data(config: DistillConfig) -> Data:
    """The examples a run asks for.

    Raises:
        DataError: a file that is not there or holds a line that cannot be used (named by number), or too few examples.
    """
    brief = config.student_reads == "brief"
    if config.data == "bundled":
        return _bundled(config, brief)
    return _split(_read(config, brief), config)


def _bundled(config: DistillConfig, brief: bool) -> Data:
    from kvviz.bundled.problems import Problem, make_problem, problems

    def example(problem: Problem) -> Example:
        own = (
            (problem.brief_prompt, problem.brief_text[len(problem.brief_prompt) :]) if brief else (None, None)
        )
        return Example(problem.prompt, problem.text[len(problem.prompt) :], *own)

    first = (TRAIN_SEED + config.seed % 1000) * BUNDLED_SIZE
    return Data(
        train=lambda index: example(make_problem(first + index, "train")),
        # The same for any batch size and number of devices, so that those change nothing about which problems come.
        train_size=BUNDLED_SIZE,
        evaluation=tuple(map(example, problems(config.eval_examples, "heldout", EVAL_SEED))),
        calibration=tuple(map(example, problems(config.calibration_examples, "train", CALIBRATION_SEED))),
        source="the bundled word problems",
    )


def _split(examples: Sequence[Example], config: DistillConfig) -> Data:
    """A user's examples: about a tenth is held out, by a hash of the prompt, so that no prompt is in both."""
    if len(examples) < LEAST:
        raise DataError(
            f"{config.data} has too few examples.",
            f"{len(examples)} with both a prompt and a completion, and some must be held out.",
            f"Give at least {LEAST}.",
        )
    held: list[Example] = []
    train: list[Example] = []
    for example in examples:
        digest = hashlib.sha256(example.prompt.encode("utf-8", "replace")).digest()
        (held if int.from_bytes(digest[:8]) % HELD_OUT == 0 else train).append(example)
    if not held or not train:
        # Few examples, or one prompt repeated: deal whole prompts, the first in order of their hash is held out.
        prompts = sorted({example.prompt for example in examples})
        if len(prompts) < 2:
            raise DataError(
                f"{config.data} cannot be split.",
                "All its examples have the same prompt, so none can be held out.",
                "Give examples with different prompts.",
            )
        out = set(prompts[:: max(len(prompts) // max(len(prompts) // HELD_OUT, 1), 1)])
        out = out if len(out) < len(prompts) else {prompts[0]}
        held = [example for example in examples if example.prompt in out]
        train = [example for example in examples if example.prompt not in out]
    return Data(
        train=train.__getitem__,
        train_size=len(train),
        evaluation=tuple(held[: config.eval_examples]),
        calibration=tuple(train[: config.calibration_examples]),
        source=f"{config.data} ({len(train):,} to train on, {len(held):,} held out)",
    )


def _read(config: DistillConfig, brief: bool) -> list[Example]:
    path = Path(config.data).expanduser()
    if path.is_file():
        return list(_of_file(path, brief))
    if path.suffix in (".jsonl", ".json"):
        raise DataError(
            f"{config.data} is not there.", "No file has this path.", "Check the path of the data."
        )
    rows = _of_datasets(config, path)
    return [_example(row, f"row {number}", config.data, brief) for number, row in enumerate(rows, 1)]


def _of_file(path: Path, brief: bool) -> Iterable[Example]:
    """Examples of a JSONL file, blank lines left out."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                yield _example(_row(line, number, path), f"line {number}", str(path), brief)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} cannot be read.",
            f"It is not UTF-8 text ({error.reason} at byte {error.start:,}).",
            "Save it as UTF-8, one JSON object a line.",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read.", sentence(error), "Check the file and who may read it."
        ) from error


def _row(line: str, number: int, path: Path) -> Any:
    if len(line) > LINE_LIMIT:
        raise DataError(
            f"{path}, line {number} is too long.",
            f"It has {len(line):,} characters.",
            "Put one example on a line.",
        )
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number} is no JSON.",
            sentence(f"{error.msg} at column {error.colno}"),
            "Put one JSON object on a line, with question and answer, or prompt and completion.",
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{path}, line {number} cannot be read.",
            "It is nested too deeply.",
            "Put one flat object on a line.",
        ) from error


def _of_datasets(config: DistillConfig, path: Path) -> Iterable[Any]:
    """Rows of a folder saved by `datasets`, or of a Hub data set: its train split, or its only one."""
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    try:
        found: Any = (
            load_from_disk(str(path)) if path.is_dir() else load_dataset(config.data, config.data_config)
        )
    except Exception as error:  # loaders raise anything; the person is told and the cause is kept
        raise DataError(
            f"{config.data} could not be loaded.",
            sentence(error),
            "Give bundled, a .jsonl file, a folder saved by datasets, or a data set's Hub id.",
        ) from error
    if isinstance(found, DatasetDict):
        found = found["train"] if "train" in found else next(iter(found.values()))
    if not isinstance(found, Dataset):
        raise DataError(
            f"{config.data} cannot be used.",
            f"It is a {type(found).__name__}, not a table of examples.",
            "Save one split of it with save_to_disk.",
        )
    return found


def _example(row: Any, where: str, source: str, brief: bool) -> Example:
    """An example from a JSON object or a table's row; what is wrong with it is named with its place."""
    if not isinstance(row, Mapping):
        raise DataError(
            f"{source}, {where} is no object.",
            f"It is a {type(row).__name__}.",
            "Give question and answer, or prompt and completion.",
        )
    if "question" in row or "answer" in row:
        names, layout = ("question", "answer", "student_answer"), "Question: {}\nReasoning:\n"
    else:
        names, layout = ("prompt", "completion", "student_completion"), "{}"
    values = {}
    for name in names[: 3 if brief else 2]:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            found = "is missing" if value is None else "is blank" if isinstance(value, str) else "is no text"
            raise DataError(
                f"{source}, {where} cannot be used.",
                f"Its {name} {found}.",
                f"Give each example {' and '.join(names[: 3 if brief else 2])}.",
            )
        if not _is_unicode(value):
            raise DataError(
                f"{source}, {where} cannot be used.",
                f"Its {name} holds half of a surrogate pair, which is no valid unicode.",
                "Remove it.",
            )
        values[name] = value
    prompt, completion = layout.format(values[names[0]]), values[names[1]]
    return Example(prompt, completion, None, values[names[2]] if brief else None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
