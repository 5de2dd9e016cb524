"""`kvviz ab`: make the runs of an A/B matrix one after the other, and write what they found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kvviz.config import ConfigError
from kvviz.distill import ab
from kvviz.distill.arms import ARMS, MatrixConfig
from kvviz.distill.matrix import CONFIG, Matrix, make
from kvviz.distill.supervise import supervise


def add(commands: Any) -> None:
    """Add the command and its flags."""
    command = commands.add_parser(
        "ab",
        help="compare ways to distil over several seeds, as one queue",
        description=f"Arms: {', '.join(f'{name} ({arm.title})' for name, arm in ARMS.items())}.",
    )
    command.set_defaults(run=_ab)
    command.add_argument(
        "config",
        type=Path,
        nargs="?",
        help="YAML with arms, seeds and base, or the folder of a matrix to go on with; all defaults if left out",
    )
    command.add_argument("--name", help="of a new matrix, and of its runs")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="on top of base, as in `kvviz distill`",
    )
    command.add_argument(
        "--report", action="store_true", help="only write and print what an existing matrix found"
    )


def _ab(options: argparse.Namespace) -> int:
    matrix = _matrix(options)
    if not options.report:
        status = supervise(
            matrix.process, lambda run: make(matrix, lambda: _report(matrix)), uses_device=False
        )
        if status:
            return status
    print(ab.as_markdown(_report(matrix), _command(matrix)))
    print(f"Written to {matrix.folder / 'ab.md'} and ab.json.")
    return 0


def _report(matrix: Matrix) -> ab.Table:
    return ab.write(matrix, _command(matrix))


def _command(matrix: Matrix) -> str:
    return f"kvviz ab {CONFIG} --name {matrix.name}"


def _matrix(options: argparse.Namespace) -> Matrix:
    """An existing matrix by its folder, or a new one.

    Raises:
        ConfigError: the YAML cannot be used. RunError: the name is taken.
    """
    if options.config is not None and options.config.is_dir():
        if options.set:
            raise ConfigError("--set: a matrix that exists keeps its configuration; start a new one")
        matrix = Matrix(options.config.absolute())
        _ = matrix.config
        return matrix
    if options.report:
        raise ConfigError("--report: give the folder of a matrix")
    text = ""
    if options.config is not None:
        try:
            text = options.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{options.config} cannot be read: {error}") from error
    config = MatrixConfig.from_yaml(text, str(options.config))
    if options.set:
        config = MatrixConfig(
            arms=config.arms, seeds=config.seeds, base=config.base.with_settings(options.set)
        )
    return Matrix.create(config, name=options.name)
