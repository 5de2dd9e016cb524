"""`kvviz profile`: take one alignment apart."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from kvviz.config import AlignmentConfig, ConfigError
from kvviz.importing import uncollected
from kvviz.spec import Device, Dtype, ModelSpec


def add(commands: Any) -> None:
    """Add the command and its flags."""
    profile = commands.add_parser(
        "profile",
        help="take one alignment apart: shapes, parameters, errors, attention KL, time and memory of each stage",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    profile.set_defaults(run=_profile)
    for role in ("teacher", "student"):
        profile.add_argument(f"--{role}", default=f"bundled:{role}", help="Hugging Face id or local folder")
        profile.add_argument(f"--{role}-revision", default=None, help="branch, tag or commit")
        profile.add_argument(
            f"--{role}-dtype", default="auto", choices=get_args(Dtype), help="of the weights"
        )
        profile.add_argument(
            f"--{role}-device", default="auto", choices=get_args(Device), help="where it runs"
        )
    profile.add_argument(
        "--text", default=None, help="what both read; the first bundled held-out problem if left out"
    )
    profile.add_argument("--text-file", type=Path, default=None, help="the same, from a UTF-8 file")
    profile.add_argument("--student-text", default=None, help="the student's own, shorter text")
    profile.add_argument("--config", type=Path, default=None, help="YAML with the keys below, spelled with _")
    profile.add_argument("--json", action="store_true", help="print JSON")
    add_alignment_flags(profile)


def add_alignment_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of `AlignmentConfig`, spelled --like-this; --mode is --kv-projection-mode."""
    group = parser.add_argument_group("alignment (each overrides the YAML)")
    for name, field in AlignmentConfig.model_fields.items():
        if name == "loss_config":
            continue
        flags = [f"--{name.replace('_', '-')}"] + (["--mode"] if name == "kv_projection_mode" else [])
        options = [str(option) for option in get_args(field.annotation) if isinstance(option, str)]
        metavar = "|".join(options) if options else "true|false" if field.annotation is bool else "VALUE"
        # argparse expands % in help texts.
        text = str(field.description).replace("%", "%%")
        group.add_argument(
            *flags, dest=f"alignment.{name}", default=argparse.SUPPRESS, metavar=metavar, help=text
        )


def alignment_of(options: argparse.Namespace) -> AlignmentConfig:
    """The configuration of a command: its YAML, with its flags on top.

    Raises:
        ConfigError: naming each field that is unknown or has a value it cannot take.
    """
    values = AlignmentConfig.from_yaml(options.config).differences() if options.config else {}
    flags = {
        name.removeprefix("alignment."): value
        for name, value in vars(options).items()
        if name.startswith("alignment.")
    }
    return AlignmentConfig.parse(values | flags)


def _profile(options: argparse.Namespace) -> int:
    with uncollected():
        from transformers.utils import logging as transformers_logging

        from kvviz.align.calibrate import CalibrationError
        from kvviz.inspection import Prompt
        from kvviz.pair import load_model
        from kvviz.profile import as_table, profile_alignment

    transformers_logging.disable_progress_bar()
    config = alignment_of(options)
    text = _text(options)
    teacher, student = (
        load_model(
            ModelSpec(
                path=getattr(options, role),
                revision=getattr(options, f"{role}_revision"),
                dtype=getattr(options, f"{role}_dtype"),
                device=getattr(options, f"{role}_device"),
            )
        )
        for role in ("teacher", "student")
    )
    prompt = Prompt(text, student_text=options.student_text)
    try:
        report = profile_alignment(teacher, student, prompt, config, progress=_report_progress)
    except CalibrationError as error:
        raise ConfigError(str(error)) from error
    print(json.dumps(report, indent=2) if options.json else as_table(report))
    return 0


def _text(options: argparse.Namespace) -> str:
    if options.text is not None and options.text_file is not None:
        raise ConfigError("give --text or --text-file, not both")
    if options.text is not None:
        return options.text
    if options.text_file is None:
        from kvviz import bundled

        return bundled.examples()[0].text
    try:
        return options.text_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--text-file: {options.text_file} cannot be read as UTF-8 text: {error}"
        ) from error


def _report_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\rcalibrating: {done} of {total} texts",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )
